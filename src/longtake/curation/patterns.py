"""What gives away that a reasoning was not written by somebody who watched a video: patterns of English, tested in both directions.

Each list is one check. They are looked for without regard to case, except for the letters of options.
"""

from __future__ import annotations

import re


def either(*parts: str) -> str:
    return f"(?:{'|'.join(parts)})"


ENDS = r"(?=\s*(?:[,!.\u2026\u2014\u2013]|-\s|$))"
"""What stands after a word that is thrown in."""
OPENS = either(r"^", r"[.!?:;\u2026][\"'\u201d)\]]*\s+", r"\n\s*", r"\s[\u2014\u2013-]+\s*", r"\u2014\s*", r"\(\s*")
START = OPENS + r"(?:(?:but|and|oh|no|so|yes|well|ok|okay|hm+),?\s+)?"
"""Of a sentence, or of what is thrown in: `wait` is said there; elsewhere somebody waits."""
TO_DO = either(
    *("think", "see", "check", "look", "re-?read", "re-?check", "re-?think", "reconsider", "recall", "go back", "go through", "double"),
    *("verify", r"analy[sz]e", "start", "begin", "consider", "figure", "break", "count", "review", "find", "list", "make sure", "try", "determine"),
    *("confirm", "write", "focus", "examine", "identify", r"summari[sz]e", "compare", "piece", "put", "walk"),
)
UNSURE = either(
    "(?:not|n't) (?:entirely |quite |really |completely |so )?sure", "unsure", "confused", "thinking", "going to", "supposed to"
)
ASKS = either(
    *("asks?", "asked", "wants?", "wanted", "needs?", "said", "says", "is asking", "may", "might", "expects?", "gave", "provides?"),
    *("has (?:given|asked|provided)", "provided", "requests?", "requested", "question", "query", "prompt", "instructions?"),
)
MACHINE = r"an? (?:ai|(?:large )?language model|ai assistant|assistant here)\b"

DELIBERATION = re.compile(
    either(
        r"<\s*/?\s*think",
        START + r"wait" + ENDS,
        START + r"wait,? (?:no|but|a (?:minute|second|moment))\s*[,.!?\u2026\u2014]",
        r"\b(?:but|oh|no|hold on)[,.]? wait" + ENDS,
        r"\bh+m{2,}\b",
        r"\bhm\b",
        START + r"(?:hold on|hang on|on reflection)" + ENDS,
        START + r"(?:okay|ok|alright|all right|now then)\s*,",
        rf"\b(?:let me|let'?s|let\u2019s|let us) (?:now |just |first |quickly )?{TO_DO}",
        r"\bon second thoughts?\b",
        r"\bcome to think of it\b",
        r"\bscratch that\b",
        r"\bactually,? no\b",
        r"\bno,? actually\b",
        r"\bmy mistake\b",
        r"\bi (?:was|am|have been) (?:wrong|mistaken)\b",
        r"\bi(?: have|'ve)? (?:made a mistake|misread)\b",
        rf"\bi(?:'m| am) {UNSURE}\b",
        r"\bi(?:'m| am|'ve been| was| have been) (?:asked|told|given) (?:to|the|a|only)\b",
        r"\bi (?:need|have|want|ought|would need) to\b",
        rf"\bwe (?:need|have|want) to {TO_DO}",
        r"\bi (?:should|must|guess|suppose|wonder|might)\b",
        r"\bi(?:'ll| will|\u2019ll) (?:now |just |first )?" + TO_DO,
        r"\b(?:should|shall|could) i\b",
        r"\b(?:maybe|perhaps) (?:i|the (?:question|answer|user))\b",
        rf"\bthe user(?:'s|\u2019s)? {ASKS}\b",
        r"\bas " + MACHINE,
        r"\bi(?:'m| am) " + MACHINE,
        r"\b(?:my|the) (?:task|instructions?) (?:is|are|says?|asks?|requires?|was|were)\b",
        r"\bas instructed\b",
        r"\bmultiple[- ]choice\b",
        r"\bdistractors?\b",
        r"\bjson\b",
        r"\b(?:required|requested|correct) (?:output )?format\b",
    ),
    re.IGNORECASE,
)
"""Left-over thinking."""

SAYS = either(
    *("says?", "said", "states?", "stated", "mentions?", "mentioned", "describes?", "described", "notes?", "noted", "indicates?"),
    *("indicated", "reports?", "tells?", "specif(?:y|ies)", "lists?", "reads?", "does(?:n't| not)", "do(?:n't| not)"),
)
NOTHING_SEEN = either("text", "passage", "narrative", "summary", "context", "event log", "metadata", "notes?", "log", "input")
"""Of a text: what a viewer does not have. A sign, a letter or a page may have a text: see `ON_SCREEN`."""
ON_SCREEN = "".join(rf"(?<!{word} )" for word in ("on-screen", "onscreen", "on screen", "title", "news", "printed", "handwritten", "photo"))
PLACE_OF_TEXT = (
    r"(?! (?:on|at|in|under|below|beneath|above|across|along|over) (?:the |a |its )?(?:\w+ )?"
    r"(?:screen|picture|bottom|top|corner|photo|photograph|painting|frame|wall|image|poster|page|map|sign|display|board))"
)
GIVEN = either("provided", "given", "supplied", "available", "above")
HANDED_OUT = either(
    *("information", "texts?", "context", "details?", "data", "summar(?:y|ies)", "notes", "material", "passages?", "annotations?"),
    *(r"time-?stamps?", "segments?", "clips?", "sequence of events", "observations?", "timeline"),
)
NTH = either(
    "first", "second", "third", "fourth", "fifth", "sixth", "next", "last", "final", "previous", "earlier", "later", r"\d+(?:st|nd|rd|th)"
)

CAPTIONS = re.compile(
    either(
        rf"{ON_SCREEN}\bcaptions?\b{PLACE_OF_TEXT}",
        r"\b(?:clip|segment|scene|video|visual|textual|written|detailed|time-?stamped|frame) descriptions?\b",
        rf"\b(?:the|these|this|each|all) {GIVEN} descriptions?\b",
        rf"\bthe descriptions?,? (?:of (?:the|this|each) (?:\w+ )?(?:clip|segment|scene|video)s?|{SAYS}|{GIVEN})\b",
        r"\b(?:according to|based on|from|in|per|by) (?:the|these|this|each) descriptions?\b",
        r"\b(?:clip|segment|excerpt)s?\s*(?:#|nos?\.|numbers?)?\s*\d",
        r"\bscene\s+(?:#|no\.|number)?\s*\d+\b",
        rf"\b{NTH} (?:clip|segment)s?\b(?! of (?!the (?:video|film|movie|footage)))",
        rf"\b(?:clip|segment)s? {SAYS}\b",
        r"\b(?:in|at|from|during|of) the (?:clip|segment)s? (?:from |at |between |covering |spanning )?\(?\d",
        r"\btranscripts?\b(?! of)",
        r"\btranscription\b",
        rf"{ON_SCREEN}\bthe (?:{GIVEN} )?{NOTHING_SEEN},? (?:also |then |only |clearly )?{SAYS}\b",
        rf"\b{GIVEN} {HANDED_OUT}\b",
        r"\b(?:information|details?|context|data) (?:(?:that|which) (?:is|was|were) |i was |we are )?(?:provided|given|supplied)\b",
        rf"\baccording to the (?:{HANDED_OUT}|{NOTHING_SEEN})\b{PLACE_OF_TEXT}",
        r"\b(?:no|any|first|only) mention of\b",
        r"\b(?:explicitly|specifically|directly|clearly|not) (?:mentioned|stated|described)\b",
        r"\b(?:is|are|was|were|it's) (?:then |also |later )?(?:mentioned|stated|described)"
        r" (?:in|at|that|as|to|here|above|earlier|later|between|from|during)\b",
        r"\bas (?:was )?(?:mentioned|stated|described)\b",
        r"\bbounding box(?:es)?\b",
        r"\bnormali[sz]ed coordinates\b",
        r"\[\s*\d+(?:\.\d+)?\s*(?:,\s*\d+(?:\.\d+)?\s*){3}\]",
        r"\b(?:object|detection) (?:list|log)\b",
        r"<\s*/?\s*(?:captions|objects|options|ranges|video)\s*>",
    ),
    re.IGNORECASE,
)
"""Notes in place of the video."""
VOICE = re.compile(
    r"\b(?:narrat\w+|voice-?over|host|guide|reporter|commentator|announcer|speaker|presenter|teacher|instructor|interview\w*|radio)\b",
    re.IGNORECASE,
)
"""Somebody in the video states or describes something, and no note does."""

ALONE = r"(?!['\u2019]?\w)"
VERB_AFTER_A = r"(?=\s+(?:is|are|and|or|because|since|but|as|was|fits?|matches|seems|would|can)\b)"
LETTER = either(rf"[B-H]{ALONE}", rf"A{ALONE}(?!\s+[a-z0-9])", rf"A{VERB_AFTER_A}")
"""Of an option; `A` is one unless a word follows of which it is the article."""
MARKS = r"\s*[(\"'\u201c\[*]*"
CHOICE = r"(?i:options?|choices?|answers?|alternatives?)"
IS = r"(?i: is| are| must be| would be| should be| here is|:|,| -| \u2014)?(?i: clearly| therefore| thus| then| probably)?:?"
RULES_OUT = (
    r"(?i:eliminat(?:e|es|ed|ing)|rul(?:e|es|ed|ing) out|exclud(?:e|es|ed|ing)|discard(?:s|ed|ing)?|reject(?:s|ed|ing)?"
    r"|dismiss(?:es|ed|ing)?|leav(?:es|ing)(?: only| just| us with)?|confirm(?:s|ed|ing)?|match(?:es|ed|ing)?|contradict(?:s|ed|ing)?)"
)
AFTER_LETTER = r"(?=\s*(?:[,.;:)]|$|(?:and|or|as|because|since|is|are)\b))"
JUDGED = r"(?:is|are|seems|appears|looks|must be|can be|cannot be) (?:(?:clearly|also|therefore|thus|definitely|not|the|ruled) )*" + either(
    *("correct", "right", "wrong", "incorrect", "true", "false", "out", "best", "answer", "eliminated", "excluded")
)

LETTER_NAMES = re.compile(
    either(
        rf"\b{CHOICE}{IS}{MARKS}{LETTER}",
        rf"\b(?i:(?:correct|right|best|wrong|final) one{IS}){MARKS}{LETTER}",
        r"[(\[*]\s*[A-H]\s*[.)]?\s*[)\]*](?!\w)",
        r"(?:^|\n|[.!?:;]\s)[-* ]*\(?[A-H][.):]\s",
        rf"\b{RULES_OUT} {LETTER}{AFTER_LETTER}",
        rf"(?:^|[.!?;,:]\s+|\b(?:so|and|but|that|while|because) )[\"'\u201c]?[A-H][\"'\u201d]? {JUDGED}\b",
        r"\b[A-H], [A-H],? (?:and|or|nor) [A-H]\b",
        r"(?:^|[.!?;,:]\s+)[A-H] (?:and|or|nor) [A-H] (?:are|can|do|is|contradict|both|fail)\b",
        r"\b(?i:the (?:very )?(?:first|second|third|fourth|last|final|next)(?: two| three)?(?: listed| given| answer)?"
        r" (?:options?|alternatives?|choices?))\b(?! (?:of|for|that|on|by) )",
        rf"\b{CHOICE}(?i: number| no\.| #)? (?i:one|two|three|four|[1-4]|ii|iii|iv)(?![\w.:%])",
        r"\b(?i:first|second|third|fourth|last) (?i:of the (?:four |listed |given )?(?:options|choices|alternatives))\b",
        r"(?:\u2192|->|=>|=)\s*\(?[A-H]\)?(?=\s*[.,;)]|\s*$)",
        r"\b(?i:so|therefore|thus|hence),?(?i: it is| it's| it must be)? [B-H](?=\s*(?:[.!]|$))",
    )
)
"""Options by their letters or places."""

TIMES = re.compile(
    r"(?<![\w.:])(\d+(?:\.\d+)?)\s*(?:s|sec|secs|seconds?)?\s*(?:-|\u2013|\u2014|to|and|until)\s*(\d+(?:\.\d+)?)\s*(?:s|sec|secs|seconds?)\b"
    r"|\bat\s+(?:about\s+|around\s+)?(\d+(?:\.\d+)?)\s*(?:s|sec|secs|seconds?)\b(?! (?:intervals?|later|apart|each|per))",
    re.IGNORECASE,
)
"""`12.0 s - 22.0 s`, `between 12 and 22 seconds`, `at 12 s`."""
DENIES = re.compile(
    r"\b(?:no|not|never|nor|neither|none|cannot|without|rather than|instead of|unlike|except|other than|before|after|although|though|while"
    r"|whereas|despite|but)\b|n['\u2019]t\b",
    re.IGNORECASE,
)
"""A sentence that may name what the answer is not."""
