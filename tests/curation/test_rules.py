"""Checks without a model, on what rewriting does not change."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from longtake.config.curate import QuestionConfig
from longtake.curation.language import foreign, pieces
from longtake.curation.plain import without_quotes
from longtake.curation.records import Draft, TimeRange, named
from longtake.curation.rules import (
    asks,
    check_answer,
    check_duplicate,
    check_language,
    check_options,
    check_question,
    check_ranges,
    gives_away,
)
from longtake.errors import ConfigError
from longtake.world.questions import QUESTIONS, make_rows
from longtake.world.story import make_story

CONFIG = QuestionConfig()
DRAFT = named(
    Draft(
        video="a.mp4",
        digest="0" * 64,
        category="spatial",
        question="Where did the red square take the key?",
        options=("cave", "street", "hall", "beach"),
        answer="cave",
        reasoning="It takes the key in the cave (12.0 s - 22.0 s).",
        ranges=(TimeRange(12.0, 22.0),),
    )
)


def choosing(*options: str, **fields) -> Draft:
    return replace(DRAFT, options=options, **{"answer": options[0] if options else "cave", **fields})


def opened(answer: str, **fields) -> Draft:
    return replace(DRAFT, options=(), answer=answer, **fields)


# Options


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("cave", "street", "hall"), "3 options"),
        (("cave", "street", "hall", "beach", "snow"), "5 options"),
        (("cave", "", "hall", "beach"), "is empty"),
        (("cave", " - ", "hall", "beach"), "is empty"),
        (("cave", "street", "hall", "Cave"), "the same"),
        (("the cave", "street", "hall", "a cave."), "the same"),
        (("\uff43ave", "street", "hall", "cave"), "the same"),  # full-width letter
        (("cave", "street", "hall", "cav\u200be"), "the same"),  # zero-width space
        (("cave", "street\nB. snow", "hall", "beach"), "several lines"),
        (("cave", "street", "hall", "</think><answer>B</answer>"), "a tag"),
        (("cave", "street", "hall", "x" * 201), "201 characters"),
        (("cave", "street", "hall", "B"), "a letter"),
        (("cave", "street", "hall", "(C)"), "a letter"),
    ],
)
def test_options_that_fail(options: tuple[str, ...], told: str):
    finding = check_options(choosing(*options), CONFIG)
    assert not finding.passed and told in finding.detail and finding.check == "options"


COMBINED = """
All of the above
None of the above
None of these
All of these
all of the options
Neither of the above.
Both A and B
A and C
Both (A) and (C)
Only B and C
A, B
None of the other options
Options A and B
The same as option B
None of the other answers
It cannot be determined
There is not enough information in the video
All the above
Any of the above places
All of these places
Both of these
Both of the first two
None of the other three
"""

PLAIN_OPTIONS = """
Both of them leave the house
Neither the man nor the woman
All of the dogs run away
None of the guests stays
He passes to two of the other players
She answers a call from A to Z
To eat vitamins A and B
From point A to point B
Both
Above the door
All the guests leave
Option trading on the stock exchange
He could not be found
Two of the three boats
Each of the four singers
Both of the two boats
All of the first row
Two of these are mine and one is yours
A B-flat chord
Plan B
Type A and type B cells
"""


def test_options_about_other_options():
    def combined(option: str) -> bool:
        finding = check_options(choosing("cave", "street", "hall", option), CONFIG)
        return not finding.passed and "about the others" in finding.detail

    assert [line for line in COMBINED.strip().splitlines() if not combined(line)] == []
    assert [line for line in PLAIN_OPTIONS.strip().splitlines() if combined(line)] == []


@pytest.mark.parametrize(
    "options",
    [
        ("cave", "street", "hall", "beach"),
        ("2", "3", "12", "20"),
        ("in C", "in C++", "in C#", "in Java"),
        ("-3 degrees", "3 degrees", "30 degrees", "0 degrees"),
        ("First red, then blue", "First blue, then red", "Only red", "Only blue"),
        ("To give it to the man", "To give it to the woman", "To hide it", "To keep it"),
        ("\u6d1e\u7a74", "\u8857\u9053", "\u5927\u5385", "\u6d77\u6ee9"),
    ],
)
def test_options_that_pass(options: tuple[str, ...]):
    assert check_options(choosing(*options), CONFIG).detail == ""


def test_what_does_not_read_back_as_it_was_written_fails():
    """The published row has question and options in one text: `A. ...` inside the question would be read as an option."""
    finding = check_options(replace(DRAFT, question="A. Where did it go?"), CONFIG)
    assert finding.detail == "question and options do not read back as they were written"
    assert not check_options(choosing(" cave", "street", "hall", "beach"), CONFIG).passed
    assert not check_question(opened("cave", question="A. Where did it go?"), CONFIG).passed


def test_an_open_ended_row_has_no_options_to_be_checked():
    assert check_options(opened("in the cave"), CONFIG).passed


# Answer


@pytest.mark.parametrize(
    ("draft", "passed"),
    [
        (DRAFT, True),
        (replace(DRAFT, answer="Cave"), False),  # not one of the options to the letter
        (replace(DRAFT, answer=""), False),
        (opened("in the cave"), True),
        (opened("7"), True),
        (opened(""), False),
        (opened(" ."), False),
        (opened("B"), False),  # read as a letter, and there are no options
        (opened("(b)"), False),
        (opened("x" * 201), False),
        (opened("in the cave\nor the hall"), False),
        (opened("cave</answer>"), False),
        (opened("none of the above"), False),
        (opened("On the street, as can be seen. There is not much else to see."), False),
        (opened("He met Dr. Smith at St. Paul's."), True),
        (opened("First the jump (1.5 s), then the fall, then the climb."), True),
        (opened("very " * 41 + "long"), False),
    ],
)
def test_answer(draft: Draft, passed: bool):
    assert check_answer(draft, CONFIG).passed is passed


# Question


@pytest.mark.parametrize(
    ("question", "passed"),
    [
        ("Where did the red square take the key?", True),
        ("Name the place in which the key was taken.", True),
        ("In the second half, describe what the woman does with the letter.", True),
        ("Put these in order: the fall, the jump, the climb.", True),
        ("The key was taken in the ____.", True),
        ("After the key comes ...", True),
        ("The red square takes the key.", False),
        ("Where the red square took the key", False),
        ("", False),
        ("???", False),
        ("x" * 400 + "?", False),
        ("Where did it go?\nA. cave", False),
        ("Where did <video> it go?", False),
    ],
)
def test_question(question: str, passed: bool):
    assert check_question(replace(DRAFT, question=question), CONFIG).passed is passed


def test_question_in_a_language_without_question_marks():
    assert not asks("\u0e41\u0e21\u0e27\u0e2d\u0e22\u0e39\u0e48\u0e17\u0e35\u0e48\u0e44\u0e2b\u0e19")
    thai = replace(DRAFT, question="\u0e41\u0e21\u0e27\u0e2d\u0e22\u0e39\u0e48\u0e17\u0e35\u0e48\u0e44\u0e2b\u0e19")
    assert check_question(thai, QuestionConfig(language="th")).passed
    assert asks("\u7ea2\u8272\u65b9\u5757\u5728\u54ea\u91cc\uff1f")


@pytest.mark.parametrize(
    ("draft", "given_away"),
    [
        (replace(DRAFT, question="In which cave did the square take the key?"), True),
        (replace(DRAFT, question="Where did it go, to the cave or to the hall?"), False),  # offers another option too
        (replace(DRAFT, question="Who is a cavewoman?"), False),  # not the word
        (choosing("2 times", "3 times", "4 times", "5 times", question="Who waves 2 times?"), True),
        (choosing("2", "3", "4", "5", question="After the 2 men left, how many remain?"), False),  # too short to tell
        (choosing("no", "yes", "maybe", "never", question="Is no one there?"), False),
        (opened("the red key", question="Where is the red key at the end?"), True),
        (opened("the red key", question="Which did he take first, the red key or the lamp?"), False),
        (opened("the red key", question="Which thing does he take first?"), False),
    ],
)
def test_giving_the_answer_away(draft: Draft, given_away: bool):
    assert gives_away(draft) is given_away
    assert check_question(draft, CONFIG).passed is not given_away


# Ranges


@pytest.mark.parametrize(
    ("ranges", "passed"),
    [
        ([(12.0, 22.0)], True),
        ([(50.0, 61.3), (0.0, 5.0)], True),
        ([(50.0, 61.8)], True),  # 0.5 s of tolerance
        ([(50.0, 61.9)], False),
        ([(-0.5, 3.0)], True),
        ([(-0.6, 3.0)], False),
        ([(61.4, 61.7)], False),  # nothing of it is inside
        ([(22.0, 12.0)], False),
        ([(12.0, 12.0)], False),
        ([(12.0, 22.0), (30.0, 29.0)], False),
        ([(float("nan"), 22.0)], False),
        ([(0.0, float("inf"))], False),
        ([], False),
    ],
)
def test_ranges_in_a_video_of_61_3_s(ranges: list[tuple[float, float]], passed: bool):
    draft = replace(DRAFT, ranges=tuple(TimeRange(*one) for one in ranges))
    assert check_ranges(draft, 61.3).passed is passed


# Language

SHORT_ENGLISH = """
Where did the red square take the key?
Who wins?
Why?
Is it red?
How many birds?
When does M\u00fcller leave D\u00fcsseldorf?
Who does Kenji Watanabe meet in Sapporo?
What is Giovanni hiding in the palazzo?
Which dish is served before the ramen at Ichiran?
Did Ana or Luis enter first?
In what order do they visit Rome, Paris and Berlin?
What does the sign "Bitte nicht auf den Rasen treten" tell the man to do?
"""

OTHER_LANGUAGES = {
    "de": "Wo hat das rote Quadrat den Schl\u00fcssel genommen?",
    "es": "\u00bfD\u00f3nde tom\u00f3 el cuadrado rojo la llave?",
    "zh": "\u7ea2\u8272\u65b9\u5757\u5728\u54ea\u91cc\u62ff\u4e86\u94a5\u5319\uff1f",
    "fr": "O\u00f9 le carr\u00e9 rouge a-t-il pris la cl\u00e9 ?",
    "it": "Dove ha preso la chiave il quadrato rosso?",
    "nl": "Waar heeft het rode vierkant de sleutel gepakt?",
    "sv": "Var tog den r\u00f6da kvadraten nyckeln?",
    "pt": "Onde o quadrado vermelho pegou a chave?",
    "pl": "Gdzie czerwony kwadrat wzi\u0105\u0142 klucz?",
    "no": "Hvor tok den r\u00f8de firkanten n\u00f8kkelen?",
    "ru": "\u0413\u0434\u0435 \u043e\u043d \u0432\u0437\u044f\u043b \u043a\u043b\u044e\u0447?",
    "ja": "\u8d64\u3044\u56db\u89d2\u306f\u3069\u3053\u3067\u9375\u3092\u53d6\u308a\u307e\u3057\u305f\u304b\uff1f",
    "tr": "K\u0131rm\u0131z\u0131 kare anahtar\u0131 nereden ald\u0131?",
    "id": "Di mana kotak merah mengambil kunci?",
    "vi": "H\u00ecnh vu\u00f4ng \u0111\u1ecf l\u1ea5y ch\u00eca kh\u00f3a \u1edf \u0111\u00e2u?",
    "fi": "Miss\u00e4 punainen neli\u00f6 otti avaimen?",
}


def test_short_plain_english_is_english():
    assert [line for line in SHORT_ENGLISH.strip().splitlines() if foreign(line, "en")] == []


def test_other_languages_are_not_english_and_are_themselves():
    assert [code for code, text in OTHER_LANGUAGES.items() if not foreign(text, "en")] == []
    assert [code for code, text in OTHER_LANGUAGES.items() if foreign(text, code) and code != "no"] == []
    assert not check_language(replace(DRAFT, question=OTHER_LANGUAGES["de"]), CONFIG).passed
    assert check_language(replace(DRAFT, question=OTHER_LANGUAGES["de"]), QuestionConfig(language="de")).passed


def test_some_words_of_another_script_are_names_and_a_sentence_is_not():
    assert foreign("What does the shop \u5c71\u7530 in the old street sell to the woman in the red coat?", "en") is None
    told = foreign("What does the shop sell? \u7ea2\u8272\u65b9\u5757\u5728\u54ea\u91cc\u62ff\u4e86\u94a5\u5319", "en")
    assert told is not None and "another script" in told


def test_a_text_without_letters_has_no_language():
    assert foreign("12:30?", "en") is None and foreign("", "en") is None


def test_an_unknown_language_is_told():
    with pytest.raises(ConfigError, match=r"question\.language = 'klingon'.*check\.off"):
        foreign("Where is it?", "klingon")


def test_pieces_are_all_of_the_text():
    text = "One. " * 200 + "\n\nTwo (1.5 s - 2.5 s)! And 3" + " and" * 10
    assert "".join(pieces(text)) == text and min(map(len, pieces(text))) >= 150 and len(pieces(text)) > 2


def test_quotations_and_apostrophes():
    said = without_quotes("The dogs' owner says 'hello there', and the dog's \"bark\" isn't \u201cloud\u201d.")
    assert said == "The dogs' owner says  , and the dog's   isn't  ."


# Duplicates


def alike(one: str, other: str, answers: tuple[str, str] = ("cave", "cave"), similar: float = 90.0) -> bool:
    earlier = named(replace(DRAFT, question=one, options=(), answer=answers[0]))
    later = named(replace(DRAFT, question=other, options=(), answer=answers[1]))
    found = [not check_duplicate(later, [earlier], similar).passed, not check_duplicate(earlier, [later], similar).passed]
    assert found[0] is found[1]  # which one comes first does not matter
    return found[0]


TAKE_KEY = "Where did the red square take the key?"
SAME = [
    (TAKE_KEY, TAKE_KEY),
    (TAKE_KEY, "where did the Red Square take the key"),
    (TAKE_KEY, "Where does the red square take the key?"),
    (TAKE_KEY, "Where was it that the red square took the key?"),
    (TAKE_KEY, "In which place did the red square take the key?"),
    (TAKE_KEY, "In the video, where did the red square take the key?"),
    (TAKE_KEY, "Where then did the red square take the key?"),
    (TAKE_KEY, "In the video that is shown: where exactly does the red square take this key?"),
    ("Which place came right after the cave?", "What place came directly after the cave?"),
    ("Which place came right after the cave?", "Right after the cave, which place came?"),
    ("Which place came right after the cave?", "Which place came just after the cave?"),
    ("What colour is the van?", "What color was the van?"),
    ("What did the man in the grey coat do after leaving it?", "What does the man in the gray coat do after leaving it?"),
    ("How many times does the dog bark?", "How many times did the dog bark in the video?"),
    ("Where are the two boats at the end?", "Where are the 2 boats at the end?"),
]
DIFFERENT = [
    (TAKE_KEY, "Where did the red square take the cup?"),
    (TAKE_KEY, "Where did the blue square take the key?"),
    (TAKE_KEY, "Where did the red circle take the key?"),
    (TAKE_KEY, "Where did the red square hide the key?"),
    (TAKE_KEY, "When did the red square take the key?"),
    (TAKE_KEY, "Why did the red square take the key?"),
    (TAKE_KEY, "Where did the red square not take the key?"),
    (TAKE_KEY, "Where did the red square first take the key?"),
    (TAKE_KEY, "Where did the red square take 2 keys?"),
    ("Where did the red square give the key to the blue circle?", "Where did the blue circle give the key to the red square?"),
    ("Which place came right after the cave?", "Which place came right before the cave?"),
    ("Which place came right after the cave?", "Which place came right after the hall?"),
    ("Which place came right after the cave?", "Which place came two places after the cave?"),
    ("Where does the story begin?", "Where does the story end?"),
    ("What is the first thing that he buys?", "What is the last thing that he buys?"),
    ("What is the first thing that he buys?", "What is the first thing that she buys?"),
    ("What is to the left of the house at the end?", "What is to the right of the house at the end?"),
    ("Who enters room 12 with the box?", "Who enters room 13 with the box?"),
    ("Who enters with the box?", "Who enters without the box?"),
    ("Who was seen by the man at the window?", "Who was seen with the man at the window?"),
    ("How many birds are on the roof?", "How many dogs are on the roof?"),
    ("How long does the dance last?", "How often does the dance last?"),
    ("Who leaves the house after the rain?", "Who enters the house after the rain?"),
    ("What does the girl in the long red dress with the hat do there?", "What does the girl in the long red dress with the bag do there?"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_same_question_same_answer(one: str, other: str):
    assert alike(one, other)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_like_words_another_question(one: str, other: str):
    assert not alike(one, other)


@pytest.mark.parametrize(
    ("answers", "same"),
    [
        (("cave", "the cave"), True),
        (("cave", "In the cave."), True),
        (("cave", "hall"), False),
        (("to give it to the man", "to give it to the woman"), False),
        (("3", "three"), True),
        (("it", "this"), False),
    ],
)
def test_the_answer_decides_too(answers: tuple[str, str], same: bool):
    assert alike(TAKE_KEY, TAKE_KEY, answers) is same


def test_words_may_be_added_as_far_as_similar_allows():
    longer = "Where did the red square with the happy face take the golden key?"
    assert not alike(TAKE_KEY, longer) and alike(TAKE_KEY, longer, similar=60.0)


def test_the_first_stays_and_is_named():
    other = named(replace(DRAFT, question="Who took the lamp?"))
    later = named(replace(DRAFT, question="Where does the red square take the key?"))
    finding = check_duplicate(later, [other, DRAFT], 90.0)
    assert finding.detail == f'the same as "{DRAFT.question}" ({DRAFT.key})'
    assert check_duplicate(DRAFT, [other], 90.0).passed and check_duplicate(DRAFT, [], 90.0).passed


# Rows of the world, which are right


@pytest.fixture(scope="module")
def world() -> list[list[Draft]]:
    """Drafts of 60 stories, different questions each."""
    stories = []
    for seed in range(60):
        story = make_story(seed, seconds=(60.0, 120.0), num_scenes=(5, 8))
        rows = make_rows(story, first_id=0, video=f"{seed}.mp4", subtitles=None, count=16, open_ended=0.3)
        drafts: dict[str, Draft] = {}
        for row in rows:
            question, *options = row.problem.split("\n")
            texts = tuple(option[3:] for option in options)
            said = row.answer.removeprefix("<answer>").removesuffix("</answer>")
            answer = texts["ABCD".index(said)] if texts else said
            made = Draft(row.videos[0], f"{seed}", row.problem_type, question, texts, answer, row.reasoning, (TimeRange(1.0, 9.0),))
            drafts.setdefault(question, named(made))
        stories.append(list(drafts.values()))
    assert sum(map(len, stories)) > 500
    return stories


def test_right_rows_of_the_world_pass_every_rule(world: list[list[Draft]]):
    for drafts in world:
        for index, draft in enumerate(drafts):
            findings = [
                check_options(draft, CONFIG),
                check_answer(draft, CONFIG),
                check_question(draft, CONFIG),
                check_ranges(draft, 60.0),
                check_language(draft, CONFIG),
                check_duplicate(draft, drafts[:index], 90.0),
            ]
            assert [finding for finding in findings if not finding.passed] == [], draft


def test_no_two_questions_of_a_story_are_one_even_where_answers_are_the_same(world: list[list[Draft]]):
    """Every form of question is in it, with all its names: none is taken for another when the answer is the same."""
    assert len(QUESTIONS) == 4
    same_key = [replace(draft, options=(), answer="cave") for drafts in world[:12] for draft in drafts]
    distinct = list({draft.question: draft for draft in same_key}.values())
    assert len(distinct) > 45
    assert [draft.question for index, draft in enumerate(distinct) if not check_duplicate(draft, distinct[:index], 90.0).passed] == []


def test_ten_thousand_rows_take_seconds(world: list[list[Draft]]):
    """Measured: 0.8 ms a row on one busy core; the limit here is for a machine with much else to do."""
    drafts = [draft for story in world for draft in story][:500]
    begin = time.process_time()
    for draft in drafts:
        check_options(draft, CONFIG), check_answer(draft, CONFIG), check_question(draft, CONFIG), check_language(draft, CONFIG)
        check_duplicate(draft, drafts[:10], 90.0)
    assert (time.process_time() - begin) / len(drafts) < 0.006  # 60 s for 10,000
