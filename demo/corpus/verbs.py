"""The verbs and modals of the embedded German-English corpus: data tables.

Every table is our own writing; see `lexicon` for the other words.
"""

from __future__ import annotations

from typing import NamedTuple


class Verb(NamedTuple):
    """A verb; `infinitive` and `third` come without the separable `prefix`, `participle` with it.

    `past` is the irregular English past of the first word of `english`; `first` and `second` are
    irregular forms for ich and du; `preposition` and `case` govern a prepositional object.
    """

    infinitive: str
    third: str
    participle: str
    english: str
    past: str = ""
    prefix: str = ""
    sein: bool = False
    first: str = ""
    second: str = ""
    preposition: str = ""
    case: str = ""


class Modal(NamedTuple):
    """A German modal (or werden): its forms, and English as an auxiliary and a following verb."""

    infinitive: str
    first: str
    second: str
    third: str
    auxiliary: str
    following: str = ""


# Verbs with a thing as accusative object.
THING_VERBS: tuple[Verb, ...] = (
    Verb("kaufen", "kauft", "gekauft", "buy", "bought"),
    Verb("verkaufen", "verkauft", "verkauft", "sell", "sold"),
    Verb("suchen", "sucht", "gesucht", "look for"),
    Verb("finden", "findet", "gefunden", "find", "found"),
    Verb("verlieren", "verliert", "verloren", "lose", "lost"),
    Verb("nehmen", "nimmt", "genommen", "take", "took"),
    Verb("tragen", "trägt", "getragen", "carry"),
    Verb("holen", "holt", "geholt", "fetch"),
    Verb("malen", "malt", "gemalt", "paint"),
    Verb("zeichnen", "zeichnet", "gezeichnet", "draw", "drew"),
    Verb("putzen", "putzt", "geputzt", "polish"),
    Verb("waschen", "wäscht", "gewaschen", "wash"),
    Verb("reparieren", "repariert", "repariert", "repair"),
    Verb("brauchen", "braucht", "gebraucht", "need"),
    Verb("bezahlen", "bezahlt", "bezahlt", "pay for", "paid"),
    Verb("stehlen", "stiehlt", "gestohlen", "steal", "stole"),
    Verb("benutzen", "benutzt", "benutzt", "use"),
    Verb("haben", "hat", "gehabt", "have", "had", second="hast"),
    Verb("bestellen", "bestellt", "bestellt", "order"),
    Verb("vergessen", "vergisst", "vergessen", "forget", "forgot"),
    Verb("behalten", "behält", "behalten", "keep", "kept", second="behältst"),
    Verb("packen", "packt", "eingepackt", "pack", prefix="ein"),
    Verb("werfen", "wirft", "weggeworfen", "throw away", "threw", prefix="weg"),
)

# Verbs with a text as accusative object.
TEXT_VERBS: tuple[Verb, ...] = (
    Verb("lesen", "liest", "gelesen", "read", "read"),
    Verb("schreiben", "schreibt", "geschrieben", "write", "wrote"),
    Verb("übersetzen", "übersetzt", "übersetzt", "translate"),
    Verb("unterschreiben", "unterschreibt", "unterschrieben", "sign"),
    Verb("schreiben", "schreibt", "abgeschrieben", "copy", prefix="ab"),
)

# Verbs with food as accusative object.
FOOD_VERBS: tuple[Verb, ...] = (
    Verb("essen", "isst", "gegessen", "eat", "ate"),
    Verb("kochen", "kocht", "gekocht", "cook"),
    Verb("probieren", "probiert", "probiert", "taste"),
    Verb("schneiden", "schneidet", "geschnitten", "cut", "cut"),
)

# Verbs with a drink as accusative object.
DRINK_VERBS: tuple[Verb, ...] = (
    Verb("trinken", "trinkt", "getrunken", "drink", "drank"),
    Verb("verschütten", "verschüttet", "verschüttet", "spill"),
    Verb("schenken", "schenkt", "eingeschenkt", "pour", prefix="ein"),
)

# Verbs with a person or an animal as accusative object.
PERSON_VERBS: tuple[Verb, ...] = (
    Verb("rufen", "ruft", "angerufen", "call", prefix="an"),
    Verb("laden", "lädt", "eingeladen", "invite", prefix="ein"),
    Verb("holen", "holt", "abgeholt", "collect", prefix="ab"),
    Verb("besuchen", "besucht", "besucht", "visit"),
    Verb("fragen", "fragt", "gefragt", "ask"),
    Verb("kennen", "kennt", "gekannt", "know", "knew"),
    Verb("sehen", "sieht", "gesehen", "see", "saw"),
    Verb("hören", "hört", "gehört", "hear", "heard"),
    Verb("treffen", "trifft", "getroffen", "meet", "met"),
    Verb("vermissen", "vermisst", "vermisst", "miss"),
    Verb("bewundern", "bewundert", "bewundert", "admire"),
    Verb("grüßen", "grüßt", "gegrüßt", "greet"),
    Verb("trösten", "tröstet", "getröstet", "comfort"),
    Verb("umarmen", "umarmt", "umarmt", "hug", "hugged"),
    Verb("retten", "rettet", "gerettet", "save"),
    Verb("begleiten", "begleitet", "begleitet", "accompany"),
    Verb("warnen", "warnt", "gewarnt", "warn"),
    Verb("verstehen", "versteht", "verstanden", "understand", "understood"),
)

# Verbs with a person or an animal as dative object.
DATIVE_VERBS: tuple[Verb, ...] = (
    Verb("helfen", "hilft", "geholfen", "help"),
    Verb("danken", "dankt", "gedankt", "thank"),
    Verb("folgen", "folgt", "gefolgt", "follow", sein=True),
    Verb("antworten", "antwortet", "geantwortet", "answer"),
    Verb("vertrauen", "vertraut", "vertraut", "trust"),
    Verb("gratulieren", "gratuliert", "gratuliert", "congratulate"),
    Verb("hören", "hört", "zugehört", "listen to", prefix="zu"),
    Verb("glauben", "glaubt", "geglaubt", "believe"),
    Verb("gehorchen", "gehorcht", "gehorcht", "obey"),
)

# Verbs with a person as dative and a thing as accusative object.
GIVING_VERBS: tuple[Verb, ...] = (
    Verb("geben", "gibt", "gegeben", "give", "gave"),
    Verb("zeigen", "zeigt", "gezeigt", "show"),
    Verb("bringen", "bringt", "gebracht", "bring", "brought"),
    Verb("schicken", "schickt", "geschickt", "send", "sent"),
    Verb("leihen", "leiht", "geliehen", "lend", "lent"),
    Verb("versprechen", "verspricht", "versprochen", "promise"),
    Verb("bieten", "bietet", "angeboten", "offer", prefix="an"),
)

# Verbs without an object.
ACTION_VERBS: tuple[Verb, ...] = (
    Verb("schlafen", "schläft", "geschlafen", "sleep", "slept"),
    Verb("arbeiten", "arbeitet", "gearbeitet", "work"),
    Verb("lachen", "lacht", "gelacht", "laugh"),
    Verb("weinen", "weint", "geweint", "cry"),
    Verb("singen", "singt", "gesungen", "sing", "sang"),
    Verb("tanzen", "tanzt", "getanzt", "dance"),
    Verb("spielen", "spielt", "gespielt", "play"),
    Verb("lernen", "lernt", "gelernt", "learn"),
    Verb("beten", "betet", "gebetet", "pray"),
    Verb("stehen", "steht", "gestanden", "stand", "stood"),
    Verb("flüstern", "flüstert", "geflüstert", "whisper"),
    Verb("klettern", "klettert", "geklettert", "climb", sein=True),
    Verb("schwimmen", "schwimmt", "geschwommen", "swim", "swam", sein=True),
    Verb("stehen", "steht", "aufgestanden", "get up", "got", prefix="auf", sein=True),
    Verb("schlafen", "schläft", "eingeschlafen", "fall asleep", "fell", prefix="ein", sein=True),
    Verb("kommen", "kommt", "angekommen", "arrive", prefix="an", sein=True),
)

# Verbs with a direction.
MOTION_VERBS: tuple[Verb, ...] = (
    Verb("gehen", "geht", "gegangen", "go", "went", sein=True),
    Verb("fahren", "fährt", "gefahren", "drive", "drove", sein=True),
    Verb("laufen", "läuft", "gelaufen", "run", "ran", sein=True),
    Verb("kommen", "kommt", "gekommen", "come", "came", sein=True),
    Verb("fliegen", "fliegt", "geflogen", "fly", "flew", sein=True),
    Verb("reisen", "reist", "gereist", "travel", "travelled", sein=True),
    Verb("kriechen", "kriecht", "gekrochen", "crawl", sein=True),
    Verb("reiten", "reitet", "geritten", "ride", "rode", sein=True),
)

# Verbs with a person or an animal as prepositional object.
PREPOSITION_VERBS: tuple[Verb, ...] = (
    Verb("warten", "wartet", "gewartet", "wait for", preposition="auf", case="acc"),
    Verb("denken", "denkt", "gedacht", "think of", "thought", preposition="an", case="acc"),
    Verb("sprechen", "spricht", "gesprochen", "speak with", "spoke", preposition="mit", case="dat"),
    Verb("träumen", "träumt", "geträumt", "dream of", preposition="von", case="dat"),
    Verb("lachen", "lacht", "gelacht", "laugh about", preposition="über", case="acc"),
    Verb("suchen", "sucht", "gesucht", "search for", preposition="nach", case="dat"),
    Verb(
        "kämpfen", "kämpft", "gekämpft", "fight against", "fought", preposition="gegen", case="acc"
    ),
    Verb("streiten", "streitet", "gestritten", "argue with", preposition="mit", case="dat"),
)

# Verbs with a clause that begins with dass.
SAYING_VERBS: tuple[Verb, ...] = (
    Verb("wissen", "weiß", "gewusst", "know", "knew", first="weiß", second="weißt"),
    Verb("glauben", "glaubt", "geglaubt", "believe"),
    Verb("hoffen", "hofft", "gehofft", "hope"),
    Verb("sagen", "sagt", "gesagt", "say", "said"),
    Verb("denken", "denkt", "gedacht", "think", "thought"),
    Verb("behaupten", "behauptet", "behauptet", "claim"),
    Verb("bemerken", "bemerkt", "bemerkt", "notice"),
)

# Verbs with the subject es.
WEATHER_VERBS: tuple[Verb, ...] = (
    Verb("regnen", "regnet", "geregnet", "rain"),
    Verb("schneien", "schneit", "geschneit", "snow"),
)

BE = Verb("sein", "ist", "gewesen", "be", "was", sein=True, first="bin", second="bist")
COST = Verb("kosten", "kostet", "gekostet", "cost", "cost")
ASK = Verb("fragen", "fragt", "gefragt", "ask")

MODALS: tuple[Modal, ...] = (
    Modal("können", "kann", "kannst", "kann", "can"),
    Modal("müssen", "muss", "musst", "muss", "must"),
    Modal("sollen", "soll", "sollst", "soll", "should"),
    Modal("dürfen", "darf", "darfst", "darf", "may"),
    Modal("werden", "werde", "wirst", "wird", "will"),
    Modal("wollen", "will", "willst", "will", "", "want to"),
    Modal("möchten", "möchte", "möchtest", "möchte", "would", "like to"),
)

# The same in both languages, never with an article.

ALL_VERBS: tuple[Verb, ...] = (
    *THING_VERBS,
    *TEXT_VERBS,
    *FOOD_VERBS,
    *DRINK_VERBS,
    *PERSON_VERBS,
    *DATIVE_VERBS,
    *GIVING_VERBS,
    *ACTION_VERBS,
    *MOTION_VERBS,
    *PREPOSITION_VERBS,
    *SAYING_VERBS,
    *WEATHER_VERBS,
    *(BE, COST, ASK),
)


def lemma(verb: Verb) -> str:
    """Return the dictionary form, with its preposition if that is fixed: anrufen, warten auf."""
    return f"{verb.prefix}{verb.infinitive} {verb.preposition}".strip()
