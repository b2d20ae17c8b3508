"""What a reasoning may not say, on sentences that people and models really write, in both directions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from longtake.config.curate import QuestionConfig
from longtake.curation.records import Draft, Finding, TimeRange
from longtake.curation.wording import (
    check_asked_captions,
    check_captions,
    check_conclusion,
    check_deliberation,
    check_letters,
    check_reasoning,
    check_reasoning_language,
    check_times,
)

CONFIG = QuestionConfig()
DRAFT = Draft(
    video="a.mp4",
    digest="0" * 64,
    category="spatial",
    question="Where did the red square take the key?",
    options=("cave", "street", "hall", "beach"),
    answer="cave",
    reasoning="",
    ranges=(TimeRange(12.0, 22.0),),
)


def said(reasoning: str, **fields) -> Draft:
    return replace(DRAFT, reasoning=reasoning, **fields)


def misjudged(check, sentences: str, *, passed: bool) -> list[str]:
    """The lines, each one alone and inside a longer text, about which the check says the opposite."""
    around = "At the start (0.0 s - 9.5 s) the hall is empty. {} In the end the red square walks away with the key."
    lines = [line for line in sentences.strip().splitlines() if line]
    assert len(lines) >= 30
    return [line for line in lines for text in (line, around.format(line)) if check(said(text)).passed is not passed]


THINKING = """
Wait, the red square was in the cave before that.
But wait, the key is still in the hall at that time.
No, wait. The second scene shows the street.
Wait... that was the blue circle.
The square leaves the hall. Wait — it comes back.
Hmm, the order of the scenes is not clear.
Hmmm. So the key must have been taken earlier.
Let me think about what happens after that.
Let me re-read the part from 12.0 s to 22.0 s.
Let me check the part between 40 and 52 seconds.
Let's see what the blue circle does next.
Let's double-check that.
On second thought, the lamp was already gone.
Actually, no: the purple square never enters the hall.
No, actually the cup was given away first.
Scratch that, it was the garden.
I need to find the scene where the key is taken.
I need to come up with a question about time.
I should look for the place where the lamp is hidden.
I'm not sure whether this is the same figure.
I am not entirely sure, but it seems to be the cave.
Maybe I misread the scene in the snow.
The user wants a question about the plot.
The user asked for four options.
As an AI, I cannot watch the video.
As a large language model, I rely on text.
Okay, so the red square first takes the key.
Alright, the next scene is on the beach.
Hold on, the book was never used.
I made a mistake: the circle came first.
My task is to explain why the cave is right.
The wrong ones are good distractors.
<think>The key is in the cave</think>
Perhaps the question means the second time.
We need to determine the order of the events.
I was told to cite time ranges.
I'll check the order once more.
"""

NO_THINKING = """
She waits for the bus at the corner until it starts to rain.
The two men wait a minute before they open the door.
While they wait, the dog runs into the garden.
The waiter brings the soup and waits beside the table.
They wait, then the train arrives (40.0 s - 44.0 s).
After a long wait, the gate opens.
He shouts "Wait, I forgot my bag!" and runs back into the house.
The sign on the wall reads "Hold on, this floor is wet".
The climber holds on to the rope while the other one hangs on below.
The man with the hat says 'Let me think about it' and leaves.
She lets the dog out and then locks the door.
The teacher lets us see how the dough is folded.
The woman in green actually returns twice.
He shakes his head: no, the key does not fit.
The engine hums as the boat leaves the harbour.
The girl thinks for a while in front of the board and moves the queen.
First the red square takes the key in the cave, later it gives the key to the blue circle in the hall.
What matters is who holds the lamp at the end.
That the same coat hangs in the second house shows that he has been there.
From 12.0 s to 22.0 s I see the red square enter the cave.
I watched the whole scene in the kitchen, and nobody touches the cup there.
I notice that the lamp is already lit when the camera comes back.
The man needs to reach the other side before dark, so he takes the boat.
The players need to pass the ball more often.
He wants to sell the car, and this is why he washes it.
The user of the phone swipes to the left and opens the map.
It might look as if he stole it, but the owner hands it to him.
The assistant hands the surgeon a clamp.
Her second thought seems to be the boat, since she looks at it again.
The scratch on the door shows that the cat was here.
The order of the stops is Rome, then Paris, then Berlin.
The format of the match changes after the break.
An AI-controlled car drives past the crowd.
OK is written on the button that she presses.
"""

CAPTIONED = """
According to the captions, the red square takes the key in the cave.
The caption at 12.0 s says that the key is taken.
The captions do not say who takes it.
In clip 3 the red square takes the key.
Clips 4 and 5 take place in the hall.
Clip #7 shows the beach.
In the third clip the circle meets the square.
The next clip describes a fight in the street.
The clip mentions a lamp.
In the clip from 12.0 s to 22.0 s the square takes the key.
Segment 5 shows the garden.
The segment states that the cup is on the table.
The description says that the man is angry.
The descriptions do not mention a second dog.
Based on the description, the man is a cook.
According to the provided descriptions, the key is in the cave.
The video description mentions a boat.
The clip descriptions say so twice.
The transcript says that the train is late.
According to the transcript, they meet at noon.
The text says that the key is in the cave.
The provided text does not say why.
From the provided information, the red square is the owner.
Based on the information given, he took the boat.
The given context shows three people.
There is no mention of a second key.
It is mentioned that the square leaves the cave.
It is explicitly stated that he is tired.
As mentioned, the lamp is hidden in the snow.
The man is described as wearing a red hat.
The bounding boxes show that the cup is left of the plate.
The cup is at [112, 540, 208, 701], so it is left of the plate.
The summary states that the story ends in the hall.
As described above, the circle comes last.
Scene 4 is in the kitchen.
According to the notes, the guests leave early.
"""

NO_CAPTION = """
The red square takes the key in the cave (12.0 s - 22.0 s) and leaves.
The on-screen caption reads "Paris, 1945".
A caption at the bottom of the screen gives the year.
The title caption names the town.
She clips the roses and puts them into a vase.
He clips the rope to his belt and climbs on.
The barber clips the hair above the ears.
Later in the clip the dog comes back.
The paper clip lies on the desk from the first minute to the last.
The first segment of the orange goes to the child.
The worm has 12 segments.
In the second scene the man is already in the house.
The scene in the kitchen comes after the one in the garden.
The text on the sign says "Exit", and he follows it.
The text on the whiteboard describes the plan of the day.
He reads the letter, and its text makes him leave at once.
He gives the policeman a description of the thief.
The description of the thief is pinned to the wall.
The judge reads from the transcript of the trial.
She writes notes while the others talk.
The pianist plays the wrong note twice.
The waiter provides the guests with menus.
The tools that the farmer provided are still in the shed at the end.
The information desk is to the left of the entrance.
He asks at the information desk, and they give him a map.
He does not mention the money to his wife, although he has counted it.
The narrator explains that the herd is described as lost.
The guide states that the tower was built first, and then shows it.
The reporter stated at the beginning that the road is closed.
The coordinates on the screen of the boat change from 54 to 55.
She shoots 3 arrows, and the second one hits.
He puts the box into the bounding mine cart.
The camera shows the same street as in the beginning.
The boy captures the third flag and wins.
The log floats down the river and blocks the boat.
"""

LETTERED = """
The answer is B.
The answer is therefore C.
So the correct answer is A.
The correct option is (D).
Option B is wrong because the key is in the cave.
Options A and C are out, since nobody enters the hall.
Option A can be ruled out.
This rules out B and D.
That leaves only C.
This eliminates A.
This confirms D, because the square leaves.
Choice C fits best.
Choice (A) does not.
Answer: B
The answer must be "D".
(A) is wrong, since the hall is empty.
The cave, (B), is right.
A. The street is never seen again.
C) hall: nobody takes anything there.
The first option is wrong.
The last two options happen later.
The second choice is tempting.
The third alternative is about the hall.
Option 2 names the hall.
Option one is not shown.
A, B and D are all seen before.
B is correct.
Since the key is in the cave, B is correct, and the hall is not.
It is taken in the hall, so A is incorrect.
B and C are both in the second half.
The key is in the cave -> B.
The square takes the key in the cave, so B.
The best answer is A because the key is there.
The correct one is C.
B. street and A. cave differ in light.
D beach comes later.
"""

UNLETTERED = """
The answer is a cave, since the walls are rock (12.0 s - 22.0 s).
The answer is the cave.
The right answer is therefore the cave.
It is a matter of order: the square enters the cave before the hall.
A man enters the hall, and the circle leaves.
A square takes the key. A circle watches.
The square has two options: to stay in the cave, or to go into the hall.
The other options are seen only after the key was taken.
The remaining options can be excluded, because nobody enters them before.
The street would be another choice, but the key is gone by then.
She has no choice and takes the boat.
He answers a call and leaves the room.
The boy answers all 4 questions of the teacher.
He takes vitamin C every morning.
They land in terminal B and walk to the train.
Plan B is to take the boat.
The bus goes from point A to point B.
Team A scores first, team B scores twice.
The players of team B are faster than those of team A.
The choir sings in the key of D.
The letter B is painted on the door.
The doctor rules out a fracture and sends her home.
It leaves a mark on the wall.
That leaves a single place: the cave.
He confirms a booking at the desk.
This matches a scene in the first minute.
I see the red square in the cave from 12.0 s to 22.0 s.
A is the first letter that the child writes on the board, next to a drawing of a bee.
The man with the hat chooses the second door.
The last choice of the jury is the singer in white.
The second of the four houses is on fire.
His first choice is the cave, but it is closed.
In the end the cave is the only place that fits.
She eats an apple (a green one) in the kitchen.
"""


@pytest.mark.parametrize(
    ("check", "fails", "passes"),
    [
        (check_deliberation, THINKING, NO_THINKING),
        (check_captions, CAPTIONED, NO_CAPTION),
        (check_letters, LETTERED, UNLETTERED),
    ],
    ids=["deliberation", "captions", "letters"],
)
def test_sentences_of_both_kinds(check, fails: str, passes: str):
    assert misjudged(check, fails, passed=False) == []
    assert misjudged(check, passes, passed=True) == []


def test_a_detail_shows_the_place():
    finding = check_deliberation(said("The red square enters the cave. Wait, it is the hall. It takes the key."))
    assert finding == Finding("deliberation", False, '"enters the cave. Wait, it is the hall. It takes the"')


@pytest.mark.parametrize(
    ("reasoning", "passed"),
    [
        ("Cave B street no, D beach yes.", False),  # the option's own text behind a letter
        ("It is seen in B. street at first.", False),
        ("He walks down B street and A street, then to the cave.", False),
        ("A cave is seen, then a street and a beach.", True),
        ("The cave comes before the street.", True),
    ],
)
def test_a_letter_before_the_text_of_an_option(reasoning: str, passed: bool):
    assert check_letters(said(reasoning)).passed is passed


def test_letters_of_an_open_ended_row():
    assert check_letters(said("The square takes the key in the cave.", options=())).passed
    assert not check_letters(said("Option B is right.", options=())).passed


def test_notes_are_looked_for_in_question_and_options_too():
    assert check_asked_captions(said("")).passed
    assert not check_asked_captions(said("", question="According to the captions, where is the key?")).passed
    assert not check_asked_captions(said("", options=("cave", "as described in clip 3", "hall", "beach"))).passed
    assert check_captions(said("It is the cave.", question="According to the captions, where is the key?")).passed


@pytest.mark.parametrize(
    ("reasoning", "passed"),
    [
        ("It enters the cave (12.0 s - 61.8 s).", True),  # 0.5 s beyond the end: rounded
        ("It enters the cave (12.0 s - 61.9 s).", False),
        ("It enters the cave between 50 and 95 seconds.", False),
        ("It enters the cave from 12 to 22 seconds.", True),
        ("It enters the cave at 70 s.", False),
        ("It enters the cave at about 60.5 seconds.", True),
        ("It stays for 95 seconds in the game on the screen.", True),  # a duration, not a time of this video
        ('A sign says "closed at 90 seconds".', True),
        ("It waits at 90 second intervals.", True),
        ("The score is 70 to 95.", True),
        ("In 1990 - 1995 the house was empty.", True),
    ],
)
def test_times_inside_a_video_of_61_3_s(reasoning: str, passed: bool):
    assert check_times(said(reasoning), 61.3).passed is passed


@pytest.mark.parametrize(
    ("reasoning", "passed"),
    [
        ("The square enters the cave first. So the key was taken in the cave.", True),
        ("The square walks through the gate (3.5 s - 9.0 s). So the key was taken in the hall.", False),
        ("In the cave the square takes the key. So the square takes the key in the hall.", False),  # against what it saw
        ("In the cave the square takes the key. Then it goes to the hall.", True),  # the story goes on: no conclusion
        ("The square walks through the gate. So the key was not taken in the hall.", True),  # it denies
        ("The square walks through the gate. Therefore it was rather the grotto than the hall.", True),
        ("The square walks through the gate. So right after the hall it took the key underground.", True),
        ("The square leaves the hall. So the key was taken underground.", True),  # another option, but not at the end
        ("The square is in the grotto.\nIt is the street", False),
    ],
)
def test_conclusion_is_another_option(reasoning: str, passed: bool):
    assert check_conclusion(said(reasoning)).passed is passed


def test_conclusion_names_the_place_that_was_asked_about():
    draft = said("The cave comes after the hall. So what comes after leaves the hall behind.", question="What comes after the hall?")
    assert check_conclusion(draft).passed


def test_conclusion_of_purposes_that_share_little_words():
    options = ("to keep it", "to give it to the man", "to hide it", "to use it")
    draft = said("He gives the lamp to the man. So he wanted the lamp to keep it.", options=options, answer="to give it to the man")
    assert not check_conclusion(draft).passed
    assert check_conclusion(replace(draft, reasoning="He gives the lamp to the man. So he wanted it for the man.")).passed


def test_conclusion_is_silent_where_options_share_words_or_are_short():
    shared = said("It takes the key as well as the cup.", options=("key and cup", "key", "the lamp", "the book"), answer="key and cup")
    assert check_conclusion(shared).passed
    short = said("It comes back two times.", options=("3", "2", "yes", "4"), answer="3")
    assert check_conclusion(short).passed
    assert check_conclusion(said("It is the hall.", options=(), answer="cave")).passed


def test_reasoning_is_there_and_whole():
    config = QuestionConfig(max_reasoning_chars=60)
    assert check_reasoning(said("The red square takes the key in the cave"), config).passed
    assert not check_reasoning(said(""), config).passed
    assert not check_reasoning(said("In the cave."), config).passed
    assert check_reasoning(said("\u7ea2\u8272\u65b9\u5757" * 14), config).passed  # without spaces, words cannot be counted
    whole, cut = (
        "The red square takes the key in the cave (12.0 s - 22.0 s).",
        "The red square takes the key in the cave, and then it goes ",
    )
    assert check_reasoning(said(whole), config).passed and len(whole) == 59
    assert not check_reasoning(said(cut + "o"), config).passed
    assert not check_reasoning(said(whole + " Yes."), config).passed  # longer than allowed


def test_language_of_the_reasoning():
    english = "The red square takes the key in the cave (12.0 s - 22.0 s). Later the blue circle uses it in the hall. "
    german = "Das rote Quadrat nimmt den Schluessel in der Hoehle. Danach benutzt der blaue Kreis ihn in der Halle. "
    assert check_reasoning_language(said(english), CONFIG).passed
    assert not check_reasoning_language(said(german), CONFIG).passed
    half_way = check_reasoning_language(said(english * 4 + german * 3), CONFIG)
    assert not half_way.passed and "reads as de" in half_way.detail
    assert check_reasoning_language(said(german), QuestionConfig(language="de")).passed
