"""The card of a data set: its figures, as JSON and as the README of its folder. The same inputs give the same bytes: nothing in it is a
date, a machine or a path."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from longtake.config.curate import CHECKS, STAGES, CurateConfig, StageName
from longtake.config.sections import JudgeConfig
from longtake.curation.audit import Audit, Share
from longtake.curation.card_text import card_text
from longtake.curation.records import LETTERS, CheckedRow, Drop, PlacedRow, SourceVideo
from longtake.curation.split import SPLITS
from longtake.evaluation.intervals import chi_square_p
from longtake.llm.counts import Paid
from longtake.observe.digest import digest_of

README, FIGURES, PROMPTS = "README.md", "card.json", "prompts"
"""Files of the card in the data set's folder, and the folder of the prompts that were used."""
DURATION_EDGES_S = (60, 120, 300, 600, 1200, 1800, 3600, 7200)
"""Of the histogram of durations."""


@dataclass(frozen=True, eq=False)
class CardFacts:
    """What a card tells beside the rows and videos themselves."""

    config: CurateConfig
    kept: Mapping[StageName, int] = field(default_factory=dict)
    """Records that each stage kept."""
    drops: Sequence[Drop] = ()
    """Of all stages."""
    checked: Sequence[CheckedRow] = ()
    """Rows that passed, with their findings."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """The words that were sent, by purpose."""
    paid: Sequence[Paid] = ()
    """Calls, by model and purpose, over all runs that wrote into the stores."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of the packages that made it."""
    warnings: Sequence[str] = ()
    """What the rows were too few for."""
    audit: Audit | None = None
    """The checks against labelled rows."""


def write_card(folder: Path, figures: Mapping[str, Any], prompts: Mapping[str, str]) -> None:
    """README.md, card.json and prompts/ in the data set's folder."""
    texts = {README: card_text(figures), FIGURES: json.dumps(figures, indent=1, ensure_ascii=False) + "\n"}
    texts |= {f"{PROMPTS}/{purpose}.txt": text for purpose, text in sorted(prompts.items())}
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
        partial.replace(path)


def card_figures(rows: Sequence[PlacedRow], videos: Sequence[SourceVideo], facts: CardFacts) -> dict[str, Any]:
    """Everything that the card says, as plain values. `videos`: at least those of the rows."""
    of_digest = {video.digest: video for video in videos}
    splits = {split: [one for one in rows if one.split == split] for split in SPLITS}
    splits = {split: own for split, own in splits.items() if own}
    used = [of_digest[digest] for digest in sorted({one.row.draft.digest for one in rows})]
    return {
        "name": facts.config.publish.name,
        "language": facts.config.question.language,
        "num_rows": len(rows),
        "splits": {split: _split_figures(own, of_digest) for split, own in splits.items()},
        "durations": _durations([video.duration_s for video in used]),
        "rows_per_video": _spread(list(Counter(one.row.draft.digest for one in rows).values())),
        "letters": {split: _letters(own) for split, own in splits.items()},
        "pass_rates": _pass_rates(rows, facts),
        "stages": _stages(facts),
        "drops": _drops(facts.drops),
        "checks": _checks(facts),
        "origins": _origins(rows, of_digest),
        "calls": [asdict(paid) | {"bad": dict(sorted(paid.bad.items()))} for paid in facts.paid],
        "prompts": {purpose: digest_of("prompt 1", text)[:16] for purpose, text in sorted(facts.prompts.items())},
        "settings": _settings(facts.config),
        "versions": dict(facts.versions),
        "warnings": list(facts.warnings),
        "audit": None if facts.audit is None else _audit(facts.audit),
    }


def _split_figures(own: Sequence[PlacedRow], of_digest: Mapping[str, SourceVideo]) -> dict[str, Any]:
    drafts = [one.row.draft for one in own]
    digests = {draft.digest for draft in drafts}
    return {
        "rows": len(own),
        "videos": len(digests),
        "hours": sum(of_digest[digest].duration_s for digest in sorted(digests)) / 3600,
        "open_ended": sum(not draft.options for draft in drafts),
        "categories": dict(sorted(Counter(draft.category for draft in drafts).items())),
    }


def _spread(numbers: Sequence[float]) -> dict[str, float] | None:
    return {"min": min(numbers), "median": median(numbers), "max": max(numbers)} if numbers else None


def _durations(seconds: Sequence[float]) -> dict[str, Any]:
    """The histogram: videos shorter than each edge that are not below the one before; the last bin has no upper edge (null)."""
    edges: list[float | None] = [*DURATION_EDGES_S, None]
    counts = [0] * len(edges)
    for one in seconds:
        counts[sum(one >= edge for edge in DURATION_EDGES_S)] += 1
    return {"videos": len(seconds), "spread_s": _spread(seconds), "hours": sum(seconds) / 3600, "below_s": edges, "counts": counts}


def _letters(own: Sequence[PlacedRow]) -> dict[str, Any]:
    """Of the right options of a split. The chi-square test is against each row's options being right equally often."""
    choices = [one.row.draft for one in own if one.row.draft.options]
    counts = Counter(str(draft.letter) for draft in choices)
    expected: dict[str, float] = defaultdict(float)
    for draft in choices:
        for letter in LETTERS[: len(draft.options)]:
            expected[letter] += 1 / len(draft.options)
    best = max(expected, key=lambda letter: (counts[letter], letter), default=None)
    statistic = sum((counts[letter] - wanted) ** 2 / wanted for letter, wanted in expected.items())
    return {
        "rows": len(choices),
        "counts": {letter: counts[letter] for letter in sorted(expected)},
        "best": best,
        "best_constant": None if best is None else _share(Share(counts[best], len(choices))),
        "chi_square": statistic,
        "p": chi_square_p(statistic, len(expected) - 1),
    }


def _pass_rates(rows: Sequence[PlacedRow], facts: CardFacts) -> dict[str, Any] | None:
    """Of the published rows, by tenths, each rate in the nearest; None when no policy was asked."""
    if facts.config.difficulty is None:
        return None
    rates = {split: [one.row.pass_rate for one in rows if one.split == split and one.row.pass_rate is not None] for split in SPLITS}
    reasons = Counter(drop.reason for drop in facts.drops if drop.stage == "difficulty")
    every = [rate for own in rates.values() for rate in own]
    return {
        "mean": {split: sum(own) / len(own) for split, own in rates.items() if own},
        "tenths": [sum(int(10 * rate + 0.5) == tenth for rate in every) for tenth in range(11)],
        "always_right": reasons["always_right"],
        "never_right": reasons["never_right"],
    }


def _stages(facts: CardFacts) -> list[dict[str, Any]]:
    dropped = Counter(drop.stage for drop in facts.drops)
    return [
        {"stage": stage, "kept": facts.kept.get(stage), "dropped": dropped[stage]}
        for stage in STAGES
        if stage in facts.kept or dropped[stage]
    ]


def _drops(drops: Iterable[Drop]) -> dict[str, dict[str, int]]:
    """stage -> reason -> how many, most first."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for drop in drops:
        counts[drop.stage][drop.reason] += 1
    return {stage: dict(sorted(counts[stage].items(), key=lambda item: (-item[1], item[0]))) for stage in STAGES if stage in counts}


def _checks(facts: CardFacts) -> list[dict[str, Any]]:
    """How many rows were put to each check, and how many failed it. A row stops at the first one that it fails."""
    reached: Counter[str] = Counter(finding.check for row in facts.checked for finding in row.findings)
    failed: Counter[str] = Counter()
    for drop in (drop for drop in facts.drops if drop.stage == "check"):
        names = dict.fromkeys(finding.check for finding in drop.findings)
        if drop.reason in CHECKS:
            names[drop.reason] = None
            failed[drop.reason] += 1
        reached.update(list(names))
    order = [*CHECKS, *sorted(reached.keys() - set(CHECKS))]
    return [{"check": name, "reached": reached[name], "failed": failed[name]} for name in order if reached[name]]


def _origins(rows: Sequence[PlacedRow], of_digest: Mapping[str, SourceVideo]) -> list[dict[str, Any]]:
    """By licence and source, of what is published."""
    videos: dict[tuple[str, str], set[str]] = defaultdict(set)
    counts: Counter[tuple[str, str]] = Counter()
    for one in rows:
        video = of_digest[one.row.draft.digest]
        videos[video.licence, video.source].add(video.digest)
        counts[video.licence, video.source] += 1
    return [
        {"licence": licence, "source": source, "videos": len(videos[licence, source]), "rows": counts[licence, source]}
        for licence, source in sorted(videos)
    ]


def _settings(config: CurateConfig) -> dict[str, Any]:
    """What decided the rows, save prompts and models. No path and no address: they say nothing to others."""
    difficulty = config.difficulty
    return {
        "seed": config.seed,
        "clip_target_s": config.segment.target_s,
        "checks_off": list(config.check.off),
        "videos": config.publish.videos,
        "sft_share": config.split.sft_share,
        "eval_rows": dict(sorted(config.split.eval_rows.items())),
        "difficulty": None
        if difficulty is None
        else {
            "policy": Path(difficulty.model.path).name,
            "takes": difficulty.rollout.num_takes,
            "temperature": difficulty.rollout.temperature,
            "max_frames": difficulty.video.max_frames,
            "keep_certain": difficulty.keep_certain,
            "judge": None if difficulty.judge is None else _judge_name(difficulty.judge),
        },
    }


def _judge_name(judge: JudgeConfig) -> str:
    if judge.local is not None:
        return Path(judge.local.path).name
    assert judge.endpoint is not None
    return judge.endpoint.model or "the model of its server"


def _share(share: Share) -> dict[str, Any]:
    low, high = share.interval
    return {"count": share.count, "total": share.total, "share": share.share, "low": low, "high": high}


def _audit(audit: Audit) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, Share):
            return _share(value)
        if isinstance(value, Mapping):
            return {key: plain(one) for key, one in value.items()}
        if isinstance(value, tuple | list):
            return [plain(one) for one in value]
        return plain(vars(value)) if hasattr(value, "__dataclass_fields__") else value

    return {name: plain(value) for name, value in vars(audit).items()}
