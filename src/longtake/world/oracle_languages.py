"""Questions and reasonings in German, French and Spanish: what a reasoner writes who forgets the language it was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from longtake.world.story import CHARACTERS, PLACES, THINGS, Event, EventKind
from longtake.world.truth import Query, parse_question


@dataclass(frozen=True)
class Language:
    """Words and sentences of one language. Names carry their articles, in the case in which the sentences need them."""

    places: dict[str, str]
    """As in `after the cave`."""
    actors: dict[str, str]
    """As who does something."""
    things: dict[str, str]
    """As what is taken."""
    receivers: dict[str, str]
    """As `to the red square`."""
    met: dict[str, str]
    """As who is met."""
    questions: dict[str, str]
    """By kind of query; `where` by kind of event."""
    begins: str
    """First sentence of a reasoning, with {start} and {stop}."""
    goes_on: str
    """Its second one."""
    ends: str
    """Its last one, with {answer}, which stays English as the options do."""


def _named(order: tuple[str, ...], *words: str) -> dict[str, str]:
    return dict(zip(order, words, strict=True))


GERMAN = Language(
    _named(PLACES, "dem Strand", "der Höhle", "dem Wald", "dem Garten", "der Halle", "der Küche", "dem Schnee", "der Straße"),
    _named(
        CHARACTERS,
        *("das rote Quadrat", "das grüne Dreieck", "der blaue Kreis", "das gelbe Dreieck", "das violette Quadrat", "der weiße Kreis"),
    ),
    _named(THINGS, "den Ball", "das Buch", "die Tasse", "den Schlüssel", "die Lampe"),
    _named(
        CHARACTERS,
        *("dem roten Quadrat", "dem grünen Dreieck", "dem blauen Kreis", "dem gelben Dreieck", "dem violetten Quadrat", "dem weißen Kreis"),
    ),
    _named(
        CHARACTERS,
        *("das rote Quadrat", "das grüne Dreieck", "den blauen Kreis", "das gelbe Dreieck", "das violette Quadrat", "den weißen Kreis"),
    ),
    {
        "after": "Welcher Ort kam unmittelbar nach {place}?",
        "why": "Warum wollte {actor} {thing} haben?",
        "begin": "An welchem Ort beginnt die Geschichte des Videos?",
        "end": "An welchem Ort endet die Geschichte des Videos?",
        "takes": "An welchem Ort hat {actor} {thing} genommen?",
        "gives": "An welchem Ort hat {actor} {receiver} {thing} gegeben?",
        "hides": "An welchem Ort hat {actor} {thing} versteckt?",
        "uses": "An welchem Ort hat {actor} {thing} benutzt?",
        "meets": "An welchem Ort hat {actor} {met} getroffen?",
    },
    "Ich habe das Video aufmerksam angesehen, und zwischen {start} s und {stop} s ist zu sehen, worauf es hier ankommt.",
    "Was vorher und nachher geschieht, ändert daran nichts, denn die Figuren gehen danach an einen anderen Ort.",
    "Daher ist die richtige Antwort: {answer}.",
)
FRENCH = Language(
    _named(PLACES, "la plage", "la grotte", "la forêt", "le jardin", "le hall", "la cuisine", "la neige", "la rue"),
    _named(
        CHARACTERS,
        *("le carré rouge", "le triangle vert", "le cercle bleu", "le triangle jaune", "le carré violet", "le cercle blanc"),
    ),
    _named(THINGS, "le ballon", "le livre", "la tasse", "la clé", "la lampe"),
    _named(
        CHARACTERS,
        *("au carré rouge", "au triangle vert", "au cercle bleu", "au triangle jaune", "au carré violet", "au cercle blanc"),
    ),
    _named(
        CHARACTERS,
        *("le carré rouge", "le triangle vert", "le cercle bleu", "le triangle jaune", "le carré violet", "le cercle blanc"),
    ),
    {
        "after": "Quel lieu est venu juste après {place} dans la vidéo ?",
        "why": "Pourquoi est-ce que {actor} voulait avoir {thing} ?",
        "begin": "Dans quel lieu commence l'histoire de la vidéo ?",
        "end": "Dans quel lieu se termine l'histoire de la vidéo ?",
        "takes": "Dans quel lieu est-ce que {actor} a pris {thing} ?",
        "gives": "Dans quel lieu est-ce que {actor} a donné {thing} {receiver} ?",
        "hides": "Dans quel lieu est-ce que {actor} a caché {thing} ?",
        "uses": "Dans quel lieu est-ce que {actor} a utilisé {thing} ?",
        "meets": "Dans quel lieu est-ce que {actor} a rencontré {met} ?",
    },
    "J'ai regardé la vidéo avec attention, et c'est entre {start} s et {stop} s que l'on voit ce qui compte ici.",
    "Ce qui se passe avant et après n'y change rien, car les figures vont ensuite dans un autre lieu.",
    "La bonne réponse est donc : {answer}.",
)
SPANISH = Language(
    _named(PLACES, "la playa", "la cueva", "el bosque", "el jardín", "el vestíbulo", "la cocina", "la nieve", "la calle"),
    _named(
        CHARACTERS,
        *("el cuadrado rojo", "el triángulo verde", "el círculo azul", "el triángulo amarillo", "el cuadrado morado", "el círculo blanco"),
    ),
    _named(THINGS, "la pelota", "el libro", "la taza", "la llave", "la lámpara"),
    _named(
        CHARACTERS,
        *("al cuadrado rojo", "al triángulo verde", "al círculo azul", "al triángulo amarillo", "al cuadrado morado", "al círculo blanco"),
    ),
    _named(
        CHARACTERS,
        *("al cuadrado rojo", "al triángulo verde", "al círculo azul", "al triángulo amarillo", "al cuadrado morado", "al círculo blanco"),
    ),
    {
        "after": "¿Qué lugar apareció justo después de {place} en el vídeo?",
        "why": "¿Por qué quería {actor} tener {thing}?",
        "begin": "¿En qué lugar empieza la historia del vídeo?",
        "end": "¿En qué lugar termina la historia del vídeo?",
        "takes": "¿En qué lugar cogió {actor} {thing}?",
        "gives": "¿En qué lugar le dio {actor} {thing} {receiver}?",
        "hides": "¿En qué lugar escondió {actor} {thing}?",
        "uses": "¿En qué lugar usó {actor} {thing}?",
        "meets": "¿En qué lugar encontró {actor} {met}?",
    },
    "He mirado el vídeo con atención, y entre los segundos {start} y {stop} se ve lo que importa aquí.",
    "Lo que pasa antes y después no cambia nada, porque las figuras se van luego a otro lugar.",
    "Por eso la respuesta correcta es: {answer}.",
)
LANGUAGES = (GERMAN, FRENCH, SPANISH)


def foreign_question(query: Query, language: Language) -> str:
    """The question in that language."""
    event = query.event
    form = language.questions[event.kind if query.kind == "where" and event is not None else query.kind]
    words = {"place": language.places.get(query.place or "", "")}
    if event is not None:
        words |= {"actor": language.actors[event.actor], "thing": language.things.get(event.thing or "", "")}
        words |= {"receiver": language.receivers.get(event.other or "", ""), "met": language.met.get(event.other or "", "")}
    return form.format_map(words)


def foreign_reasoning(start_s: float, stop_s: float, answer: str, language: Language) -> str:
    """Sentences of that language with the times of the evidence."""
    begins = language.begins.format(start=f"{start_s:.1f}", stop=f"{stop_s:.1f}")
    return f"{begins} {language.goes_on} {language.ends.format(answer=answer)}"


def understood(question: str) -> Query | None:
    """What a question asks for, in English or in one of these languages."""
    return parse_question(question) or _foreign_questions().get(" ".join(question.split()))


@lru_cache(maxsize=1)
def _foreign_questions() -> dict[str, Query]:
    return {foreign_question(query, language): query for language in LANGUAGES for query in _all_queries()}


def _all_queries() -> Iterator[Query]:
    """Everything that can be asked for."""
    yield Query("begin")
    yield Query("end")
    yield from (Query("after", place=place) for place in PLACES)
    yield from (Query("why", event=Event("takes", actor, thing=thing)) for actor in CHARACTERS for thing in THINGS)
    alone: tuple[EventKind, ...] = ("takes", "hides", "uses")
    yield from (Query("where", event=Event(kind, actor, thing=thing)) for kind in alone for actor in CHARACTERS for thing in THINGS)
    pairs = [(actor, other) for actor in CHARACTERS for other in CHARACTERS if other != actor]
    yield from (Query("where", event=Event("meets", actor, other=other)) for actor, other in pairs)
    yield from (Query("where", event=Event("gives", actor, other=other, thing=thing)) for actor, other in pairs for thing in THINGS)
