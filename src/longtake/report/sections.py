"""The parts of the page about figures: results, blind baseline, curves, time, failures, configuration."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from longtake.evaluation.intervals import chance_interval, wilson
from longtake.report import plots
from longtake.report.markup import Html, el, join, table
from longtake.report.plots import Band, Bar, Series
from longtake.report.read import PAIRS, TITLES, Evaluation, Run, Training, as_dict, number
from longtake.types import RowName

COLOURS = {
    "base": "grey",
    "sft": "blue",
    "sft_control": "sky",
    "rl": "vermillion",
    "blind": "purple",
    "sft_blind": "purple",
    "evaluation": "green",
}
MARKERS: dict[str, plots.Marker] = {"base": "s", "sft": "o", "sft_control": "D", "rl": "^", "blind": "v", "evaluation": "o"}
PHASE_COLOURS = ("blue", "orange", "green", "vermillion", "sky", "purple", "yellow", "grey")


def title_of(name: str) -> str:
    return TITLES.get(name, name)


def percent(value: object) -> str:
    figure = number(value)
    return "not measured" if figure is None else f"{100 * figure:.1f}\u00a0%"


def ends_of(share: dict[str, Any]) -> tuple[float, float]:
    """The 95 % interval as written, else computed from accuracy and n."""
    ends = share.get("ci95")
    if isinstance(ends, list) and len(ends) == 2 and all(number(end) is not None for end in ends):
        return float(ends[0]), float(ends[1])
    accuracy, rows = number(share.get("accuracy")) or 0.0, int(number(share.get("n")) or 0)
    return wilson(round(accuracy * rows), rows)


def span(ends: Sequence[object]) -> str:
    low, high = (number(end) or 0.0 for end in ends)
    return f"{100 * low:.1f} to {100 * high:.1f}"


def bar_of(label: str, share: dict[str, Any], colour: str) -> Bar | None:
    accuracy = number(share.get("accuracy"))
    return None if accuracy is None or not number(share.get("n")) else Bar(label, accuracy, *ends_of(share), colour)


def named_cell(name: str) -> Html:
    return join([el("span", class_=f"dot {name}"), title_of(name)])


def p_value(p: object) -> str:
    """`0.013`, `2e-9`; never 0."""
    figure = number(p)
    if figure is None:
        return "not computed"
    return f"{figure:.3f}" if figure >= 0.001 else f"{figure:.0e}".replace("e-0", "e-") if figure > 1e-99 else "< 1e-99"


def headline(run: Run) -> Html:
    """A handful of figures that say what happened, each with its uncertainty."""
    return el("div", join(_headline_cards(run)), class_="figures")


def _headline_cards(run: Run) -> list[Html]:
    cards = []
    for name in ("rl", "sft", "evaluation"):
        if name in run.evaluations:
            figures = run.evaluations[name].figures
            rows = f"{int(number(figures.get('n')) or 0):,} questions, 95 % interval {span(ends_of(figures))}"
            cards.append(_card(f"{title_of(name)}: accuracy", percent(figures["accuracy"]), rows))
    if (test := _pair(run, "rl", "sft")) is not None:
        gain = 100 * (number(test.get("difference")) or 0.0)
        cards.append(
            _card("Gain of RL over SFT", f"{gain:+.1f} points", f"paired test on the same questions: p = {p_value(test.get('p'))}")
        )
    if "blind" in run.evaluations:
        figures, (low, high) = run.evaluations["blind"].figures, blind_range(run.evaluations["blind"])
        where = "inside" if low <= figures["accuracy"] <= high else "OUTSIDE"
        cards.append(_card("Blind (no video)", percent(figures["accuracy"]), f"{where} the 99 % range of guessing, {span((low, high))}"))
    if not run.evaluations:
        cards += [card for training in run.trainings.values() for card in _training_cards(training)]
    return cards


def _training_cards(training: Training) -> list[Html]:
    cards = [_card(title_of(training.name), f"{len(training.metrics):,} steps", "logged in metrics.jsonl")]
    for label, names in (
        ("Reward", ("reward/total",)),
        ("Validation accuracy", ("validation/accuracy",)),
        ("Loss", ("loss", "loss/sft", "loss/total")),
    ):
        steps, values = training.series(*names)
        if values:
            cards.append(_card(label, f"{values[-1]:.3g}", f"at step {steps[-1]:g}; {values[0]:.3g} at step {steps[0]:g}"))
    return cards


def _card(label: str, value: str, below: str) -> Html:
    return el("div", el("span", label, class_="label"), el("span", value, class_="value"), el("span", below, class_="below"), class_="card")


def _pair(run: Run, first: str, second: str) -> dict[str, Any] | None:
    """The paired test of two stages, however the run named it."""
    for key in (f"{first}_vs_{second}", f"{first}-{second}", f"{first}_{second}"):
        if key in run.paired:
            return dict(run.paired[key])
    return None


def results(run: Run) -> Html:
    """Table of all evaluations, the bars, and the paired tests."""
    head = ("", "accuracy", "95 % interval", "by video", "questions", "well formed", "tokens per response", "cut off", "failures")
    rows = [_result_row(evaluation) for evaluation in run.evaluations.values()]
    bars = [
        bar for name, own in run.evaluations.items() if (bar := bar_of(title_of(name), own.figures, COLOURS.get(name, "green"))) is not None
    ]
    chance = next((blind_range(own) for own in run.evaluations.values() if number(own.figures.get("chance"))), None)
    band = Band(*chance, "guessing") if chance is not None else None
    caption = "Bars with 95 % Wilson intervals; the shaded range is where pure guessing stays with 99 % probability."
    chart = panel("Accuracy by stage", caption, plots.interval_chart(bars, band=band, title="accuracy by stage"))
    explained = (
        "Every failed row counts as a wrong answer. The 95 % interval is Wilson's and takes rows as independent; several questions share a "
        "video, so the column by video gives the interval of a bootstrap over videos."
    )
    return join(
        [
            el("p", explained, class_="lead"),
            el("div", table(head, rows), class_="panel"),
            el("div", chart, _paired_table(run), class_="panels two"),
        ]
    )


def _result_row(evaluation: Evaluation) -> list[object]:
    figures = evaluation.figures
    by_video, tokens = figures.get("ci95_by_video"), as_dict(figures.get("response_tokens"))
    clustered = span(by_video) if isinstance(by_video, list) and len(by_video) == 2 else ""
    mean, failures = number(tokens.get("mean")), figures.get("num_failures", sum(_counts(figures.get("failures")).values()))
    shown = "" if mean is None or number(figures.get("format_rate")) is None else f"{mean:.1f}"
    return [
        named_cell(evaluation.name),
        el("b", percent(figures["accuracy"])),
        span(ends_of(figures)),
        clustered,
        f"{int(number(figures.get('n')) or 0):,}",
        percent(figures.get("format_rate")),
        shown,
        percent(figures["truncated_rate"]) if "truncated_rate" in figures and shown else "",
        failures,
    ]


def _paired_table(run: Run) -> Html | None:
    rows = []
    for first, second in PAIRS:
        test = _pair(run, first, second)
        if test is not None:
            gain, up, down = (number(test.get(name)) for name in ("difference", "only_first", "only_second"))
            told = [
                f"{100 * gain:+.1f} points" if gain is not None else "",
                *("" if part is None else f"{part:.0f}" for part in (up, down)),
            ]
            rows.append([f"{title_of(first)} against {title_of(second)}", *told, p_value(test.get("p"))])
    if not rows:
        return None
    caption = "Exact McNemar test: only questions that exactly one of the two answered right can tell them apart."
    head = ("", "gain", "only first right", "only second right", "p, two-sided")
    return el("figure", el("figcaption", "The same questions, answered by both", el("small", caption)), table(head, rows), class_="panel")


def breakdowns(run: Run) -> Html:
    """By category, by number of frames, by answer letter."""
    stages = list(run.evaluations.values())
    parts = [_grouped(stages, "by_category", "Accuracy by category", "Whiskers: 95 % Wilson intervals."), _by_frames(stages)]
    parts.append(_grouped(stages, "by_source", "Accuracy by source", "Whiskers: 95 % Wilson intervals."))
    parts += [_letter_accuracy(stages), _letter_shares(stages)]
    return el("div", join(parts), class_="panels two")


def _grouped(stages: Sequence[Evaluation], part: str, heading: str, caption: str) -> Html | None:
    groups = sorted({name for stage in stages for name in as_dict(stage.figures.get(part))})
    series = [
        (
            title_of(stage.name),
            COLOURS.get(stage.name, "green"),
            [bar_of(group, as_dict(as_dict(stage.figures.get(part)).get(group)), "") for group in groups],
        )
        for stage in stages
        if as_dict(stage.figures.get(part))
    ]
    return panel(heading, caption, plots.grouped_chart(groups, series, title=heading)) if groups else None


def _by_frames(stages: Sequence[Evaluation]) -> Html | None:
    series = []
    for stage in stages:
        shares = {value: as_dict(raw) for name, raw in as_dict(stage.figures.get("by_frames")).items() if (value := _frames(name))}
        points = [(count, bar) for count in sorted(shares) if (bar := bar_of("", shares[count], "")) is not None]
        if points:
            counts, bars = [float(count) for count, _ in points], [bar for _, bar in points]
            low, high = [bar.low for bar in bars], [bar.high for bar in bars]
            colour, marker = COLOURS.get(stage.name, "green"), MARKERS.get(stage.name, "o")
            series.append(Series(title_of(stage.name), counts, [bar.value for bar in bars], colour, low, high, marker))
    if not any(len(line.xs) > 1 for line in series):
        return None
    caption = "The same questions with fewer frames of the video; shaded: 95 % intervals."
    lines = [line for line in series if len(line.xs) > 1]
    chart = plots.line_chart(lines, x_label="frames", percent=True, log2=True, width=410, title="accuracy by frames")
    return panel("Accuracy by number of frames", caption, chart)


def _frames(name: str) -> int | None:
    return int(name) if name.isdecimal() and int(name) > 0 else None


def _letter_accuracy(stages: Sequence[Evaluation]) -> Html | None:
    caption = "Questions grouped by the letter of the right answer: a model that prefers a letter shows it here."
    return _grouped(stages, "by_letter", "Accuracy by answer key", caption)


def _letter_shares(stages: Sequence[Evaluation]) -> Html | None:
    """How often each letter is answered, beside how often it is the key."""
    with_letters = [
        stage for stage in stages if any("predicted" in as_dict(part) for part in as_dict(stage.figures.get("by_letter")).values())
    ]
    if not with_letters:
        return None
    letters = sorted({letter for stage in with_letters for letter in as_dict(stage.figures["by_letter"])})
    keys = [as_dict(as_dict(with_letters[0].figures["by_letter"]).get(letter)).get("n") for letter in letters]
    exact = [None if bar is None else Bar(bar.label, bar.value, bar.value, bar.value, "") for bar in _shares(letters, keys)]
    series: list[tuple[str, str, Sequence[Bar | None]]] = [("answer key", "ink", exact)]
    for stage in with_letters:
        counts = [as_dict(as_dict(stage.figures["by_letter"]).get(letter)).get("predicted") for letter in letters]
        series.append((title_of(stage.name), COLOURS.get(stage.name, "green"), _shares(letters, counts)))
    caption = "Share of each letter among the answers read, with 95 % intervals, beside its share in the key."
    return panel("Which letters are answered", caption, plots.grouped_chart(letters, series, title="letters answered"))


def _shares(letters: Sequence[str], counts: Sequence[object]) -> list[Bar | None]:
    figures = [int(number(count) or 0) for count in counts]
    total = sum(figures)
    return [
        Bar(letter, count / total, *wilson(count, total), "") if total else None for letter, count in zip(letters, figures, strict=True)
    ]


def blind(run: Run) -> Html | None:
    """What the questions give away without the video."""
    if "blind" not in run.evaluations:
        return None
    own = run.evaluations["blind"]
    low, high = blind_range(own)
    accuracy, rows = own.figures["accuracy"], int(number(own.figures.get("n")) or 0)
    chance = number(own.figures.get("chance")) or 0.25
    verdict = "inside it: the questions do not give their answers away" if low <= accuracy <= high else "outside it"
    said = (
        f"The same fine-tuning without the video answers {percent(accuracy)} of {rows:,} questions. Guessing scores {percent(chance)} on "
        f"average and stays within {span((low, high))}\u00a0% with 99 % probability (exact binomial); the blind model is {verdict}."
    )
    constant = number(own.figures.get("best_constant"))
    more = f" Always answering the most frequent letter would score {percent(constant)}." if constant is not None else ""
    return el("p", said + more)


def blind_range(evaluation: Evaluation) -> tuple[float, float]:
    """Where guessing stays with 99 % probability; four options when the figures do not say how many there were."""
    written = evaluation.figures.get("chance99")
    if isinstance(written, list) and len(written) == 2 and all(number(end) is not None for end in written):
        return float(written[0]), float(written[1])
    return chance_interval(int(number(evaluation.figures.get("n")) or 0), number(evaluation.figures.get("chance")) or 0.25)


CURVES: tuple[tuple[str, str, tuple[tuple[str, tuple[str, ...], str], ...], bool], ...] = (
    ("Validation accuracy", "", (("accuracy", ("validation/accuracy",), "green"),), True),
    ("Rewards in training", "Each named reward, mean over the takes of a step; thick: running mean.", (), False),
    ("Loss", "", (("loss", ("loss", "loss/sft", "loss/total", "loss/policy"), "blue"),), False),
    (
        "Response length",
        "Tokens.",
        (("tokens", ("response_tokens", "rollout/response_tokens", "rollout/tokens_mean", "rollout/length"), "purple"),),
        False,
    ),
    ("Entropy of the policy", "Nats per token.", (("entropy", ("entropy", "policy/entropy"), "green"),), False),
    ("KL to the reference", "", (("KL", ("kl", "policy/kl", "loss/kl"), "orange"),), False),
    (
        "Groups without a signal",
        "Share of groups whose takes all got the same reward.",
        (("uniform", ("uniform_groups", "group/uniform"), "grey"),),
        True,
    ),
    (
        "Sampler against policy",
        "Largest difference of log-probs of one token in the step.",
        (("largest", ("logprob_difference/max", "mismatch/max"), "vermillion"),),
        False,
    ),
    ("Gradient norm", "Before clipping.", (("norm", ("grad_norm", "optimizer/grad_norm"), "sky"),), False),
    ("Learning rate", "", (("lr", ("lr", "optimizer/lr"), "grey"),), False),
)
"""Heading, caption, lines (label, names of the metric: the first that was logged is shown, colour; none: all rewards), as percent."""


def curves(run: Run) -> Html | None:
    """Small charts: supervised runs share theirs, a line each; RL has its own. A metric that no run logged is named, not drawn."""
    supervised = [training for name, training in run.trainings.items() if name != "rl"]
    parts = [_curve_group("Supervised fine-tuning", supervised)] if supervised else []
    parts += [_curve_group("Reinforcement learning", [run.trainings["rl"]])] if "rl" in run.trainings else []
    return join(parts) if parts else None


def _curve_group(heading: str, trainings: Sequence[Training]) -> Html:
    panels, absent = [], []
    for title, caption, lines, as_percent in CURVES:
        alone = len(trainings) == 1
        series = [line for training in trainings for line in _curve_lines(training, lines or _reward_lines(training), alone=alone)]
        if series:
            chart = plots.line_chart(series, x_label="step", percent=as_percent, title=f"{heading}: {title}")
            panels.append(panel(title, caption, chart))
        else:
            absent.append(title)
    told = el("p", f"Not logged: {', '.join(absent)}.", class_="note") if absent else None
    return join([el("h3", heading, class_="group"), join(map(_last_line, trainings)), el("div", join(panels), class_="panels"), told])


def _reward_lines(training: Training) -> list[tuple[str, tuple[str, ...], str]]:
    """The total first, then every named reward, a user's own too."""
    names = sorted(training.names("reward"), key=lambda name: name != "total")
    colours = ("vermillion", "blue", "orange", "green", "sky", "purple", "grey")
    return [(name, (f"reward/{name}",), colours[index % len(colours)]) for index, name in enumerate(names)]


def _curve_lines(training: Training, lines: Sequence[tuple[str, tuple[str, ...], str]], *, alone: bool) -> list[Series]:
    """The lines of one run; among several runs each has its own colour and style, and the label of the run."""
    found = []
    for label, names, colour in lines:
        steps, values = training.series(*names)
        if values and (label != "KL" or any(values)):  # with beta = 0 nothing was compared, and the 0 that is logged means nothing
            noisy = len(steps) >= 40 and label != "lr"
            own = COLOURS[training.name] if not alone else colour
            shown = label if alone else title_of(training.name)
            found.append(Series(shown, steps, values, own, smooth=noisy, dashed=not alone and training.name == "sft_blind"))
    return found


def _last_line(training: Training) -> Html:
    last = training.metrics[-1]["step"] if training.metrics else 0
    peak = max((line.get("peak_memory_bytes", line.get("memory/peak_host_bytes", 0.0)) for line in training.metrics), default=0.0)
    memory = f", peak memory {peak / 2**30:.2f} GiB" if peak else ""
    return el("p", named_cell(training.name), f": {last:g} steps{memory}", class_="lead tight")


def time_spent(run: Run) -> Html | None:
    """Seconds per phase of each training, and of the stages of the pipeline."""
    rows = [(title_of(name), phases) for name, training in run.trainings.items() if (phases := training.totals("seconds"))]
    parts: list[Html] = []
    if rows:
        totals: dict[str, float] = {}
        for _, phases in rows:
            for phase, value in phases.items():
                totals[phase] = totals.get(phase, 0.0) + value
        kept = sorted(totals, key=lambda phase: -totals[phase])[: len(PHASE_COLOURS) - 1]
        shown = [(title, _folded(phases, kept)) for title, phases in rows]
        colours = {phase: PHASE_COLOURS[index] for index, phase in enumerate(kept)}
        if len(totals) > len(kept):
            colours["other"] = "grey"
        chart = plots.stacked_chart(shown, colours, unit="seconds", title="seconds per phase of training")
        parts.append(panel("Phases of training", "Summed over all steps.", chart, _time_table(shown, list(colours))))
    if run.seconds:
        total = run.seconds.get("total") or sum(run.seconds.values())
        order = sorted(run.seconds.items(), key=lambda item: -item[1])
        listed = table(
            ("", "seconds", "share"), [(name, f"{value:.1f}", percent(value / total if total else 0.0)) for name, value in order]
        )
        parts.append(panel("Parts of the run", "As the run wrote them; some hold others, and some ran side by side.", listed))
    return el("div", join(parts), class_="panels two top") if parts else None


def _folded(phases: dict[str, float], kept: Sequence[str]) -> dict[str, float]:
    rest = sum(value for phase, value in phases.items() if phase not in kept)
    return {**{phase: phases[phase] for phase in kept if phase in phases}, **({"other": rest} if rest else {})}


def _time_table(rows: Sequence[tuple[str, dict[str, float]]], phases: Sequence[str]) -> Html:
    body = [(phase, *(f"{own.get(phase, 0.0):.1f}" for _, own in rows)) for phase in phases]
    body.append(("all", *(f"{sum(own.values()):.1f}" for _, own in rows)))
    return table(("seconds", *(title for title, _ in rows)), body)


def failures(run: Run) -> Html:
    """Failures of every evaluation and training, then what this report could not find."""
    rows: list[tuple[str, str, str]] = []
    for name, evaluation in run.evaluations.items():
        rows += [
            (f"evaluation of {title_of(name)}", kind, f"{count:g}") for kind, count in _counts(evaluation.figures.get("failures")).items()
        ]
    for name, training in run.trainings.items():
        by_kind = {kind: count for kind, count in training.totals("failures").items() if kind not in ("total", "known_rows")}
        known = {"rows refused at the start": max(training.series("failures/known_rows")[1], default=0.0)}
        counted = known | by_kind | {key: value for key, value in training.totals("count").items() if "failed" in key}
        rows += [(f"training of {title_of(name)}", kind, f"{count:g}") for kind, count in counted.items() if count]
    body = (
        table(("where", "kind", "how many"), rows, numeric_from=2) if rows else el("p", "None: every row, video and prompt could be used.")
    )
    examples = [el("li", f"problem {problem_id}: {message}") for problem_id, message in _failure_examples(run)]
    listed = join([el("p", "For example:"), el("ul", join(examples), class_="notes")]) if examples else None
    absent = el("ul", join(el("li", note) for note in dict.fromkeys(run.notes)), class_="notes") if run.notes else el("p", "Nothing.")
    told = el("p", "Failures stay in every denominator as wrong answers, and nothing takes their place.", class_="lead")
    return join([told, el("div", body, listed, class_="panel"), el("h3", "Absent from this run folder", class_="absent"), absent])


def _failure_examples(run: Run, most: int = 8) -> list[tuple[RowName | None, str | None]]:
    """The first failures, each once whatever the number of stages it befell."""
    failed = [record for own in run.evaluations.values() for record in own.records if record.failure is not None]
    return list(dict.fromkeys((record.name, record.failure_message) for record in failed))[:most]


def _counts(value: object) -> dict[str, float]:
    return {name: count for name, raw in as_dict(value).items() if (count := number(raw)) is not None}


def configuration(run: Run) -> Html:
    """The resolved configuration of every stage, folded."""
    configs = {title_of(name): training.config for name, training in run.trainings.items() if training.config}
    configs |= {f"Evaluation: {title_of(name.removeprefix('evaluation: '))}": config for name, config in run.configs.items() if config}
    if run.about:
        configs = {"The run": run.about, **configs}
    if not configs:
        return el("p", "No config.json was found in this run folder.", class_="note")
    return join(
        el("details", el("summary", name), el("pre", json.dumps(config, indent=2, ensure_ascii=False), class_="code"), class_="config")
        for name, config in configs.items()
    )


def panel(heading: str, caption: str, *content: Html) -> Html:
    return el("figure", el("figcaption", heading, el("small", caption) if caption else None), *content, class_="panel")
