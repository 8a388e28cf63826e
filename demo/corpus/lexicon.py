"""The words of the embedded German-English corpus except the verbs: data tables only.

Every table is our own writing. The grammar in `grammar` inflects the entries; an entry holds
only what cannot be derived. No two entries may make one German form with two English meanings.
"""

from __future__ import annotations

from typing import NamedTuple


class Phrase(NamedTuple):
    """A piece of a sentence in both languages, ready to be placed."""

    german: str
    english: str


class Noun(NamedTuple):
    """A noun; `gender` is "m", "f" or "n", `weak` marks the n-declension (den Studenten).

    `plural` is the nominative plural; an empty `english_plural` is the regular one.
    """

    german: str
    gender: str
    plural: str
    english: str
    english_plural: str = ""
    weak: bool = False


class Adjective(NamedTuple):
    """An adjective; `stem` takes the endings where it differs from the bare form (teuer, teur-)."""

    german: str
    english: str
    stem: str = ""


# People: subjects and objects of most verbs.
PERSONS: tuple[Noun, ...] = (
    Noun("Lehrer", "m", "Lehrer", "teacher"),
    Noun("Arzt", "m", "Ärzte", "doctor"),
    Noun("Bäcker", "m", "Bäcker", "baker"),
    Noun("Maler", "m", "Maler", "painter"),
    Noun("Schüler", "m", "Schüler", "pupil"),
    Noun("Student", "m", "Studenten", "student", weak=True),
    Noun("Nachbar", "m", "Nachbarn", "neighbour", weak=True),
    Noun("Junge", "m", "Jungen", "boy", weak=True),
    Noun("Kunde", "m", "Kunden", "customer", weak=True),
    Noun("Soldat", "m", "Soldaten", "soldier", weak=True),
    Noun("Bauer", "m", "Bauern", "farmer", weak=True),
    Noun("Mann", "m", "Männer", "man", "men"),
    Noun("Frau", "f", "Frauen", "woman", "women"),
    Noun("Kind", "n", "Kinder", "child", "children"),
    Noun("Mädchen", "n", "Mädchen", "girl"),
    Noun("Vater", "m", "Väter", "father"),
    Noun("Mutter", "f", "Mütter", "mother"),
    Noun("Bruder", "m", "Brüder", "brother"),
    Noun("Schwester", "f", "Schwestern", "sister"),
    Noun("Onkel", "m", "Onkel", "uncle"),
    Noun("Tante", "f", "Tanten", "aunt"),
    Noun("Tochter", "f", "Töchter", "daughter"),
    Noun("Sohn", "m", "Söhne", "son"),
    Noun("Freund", "m", "Freunde", "friend"),
    Noun("Gast", "m", "Gäste", "guest"),
    Noun("Chef", "m", "Chefs", "boss"),
    Noun("König", "m", "Könige", "king"),
    Noun("Königin", "f", "Königinnen", "queen"),
)

# Animals: subjects of verbs without an object, objects of verbs for people.
ANIMALS: tuple[Noun, ...] = (
    Noun("Hund", "m", "Hunde", "dog"),
    Noun("Katze", "f", "Katzen", "cat"),
    Noun("Pferd", "n", "Pferde", "horse"),
    Noun("Vogel", "m", "Vögel", "bird"),
    Noun("Kuh", "f", "Kühe", "cow"),
    Noun("Maus", "f", "Mäuse", "mouse", "mice"),
    Noun("Bär", "m", "Bären", "bear", weak=True),
)

# Things that can be counted, bought and carried.
THINGS: tuple[Noun, ...] = (
    Noun("Auto", "n", "Autos", "car"),
    Noun("Fahrrad", "n", "Fahrräder", "bicycle"),
    Noun("Tisch", "m", "Tische", "table"),
    Noun("Stuhl", "m", "Stühle", "chair"),
    Noun("Lampe", "f", "Lampen", "lamp"),
    Noun("Tasse", "f", "Tassen", "cup"),
    Noun("Teller", "m", "Teller", "plate"),
    Noun("Messer", "n", "Messer", "knife", "knives"),
    Noun("Gabel", "f", "Gabeln", "fork"),
    Noun("Löffel", "m", "Löffel", "spoon"),
    Noun("Flasche", "f", "Flaschen", "bottle"),
    Noun("Glas", "n", "Gläser", "glass"),
    Noun("Schlüssel", "m", "Schlüssel", "key"),
    Noun("Tasche", "f", "Taschen", "bag"),
    Noun("Koffer", "m", "Koffer", "suitcase"),
    Noun("Hut", "m", "Hüte", "hat"),
    Noun("Mantel", "m", "Mäntel", "coat"),
    Noun("Hemd", "n", "Hemden", "shirt"),
    Noun("Kleid", "n", "Kleider", "dress"),
    Noun("Schuh", "m", "Schuhe", "shoe"),
    Noun("Ring", "m", "Ringe", "ring"),
    Noun("Bild", "n", "Bilder", "picture"),
    Noun("Karte", "f", "Karten", "card"),
    Noun("Kamera", "f", "Kameras", "camera"),
    Noun("Telefon", "n", "Telefone", "telephone"),
    Noun("Geschenk", "n", "Geschenke", "gift"),
    Noun("Blume", "f", "Blumen", "flower"),
    Noun("Ball", "m", "Bälle", "ball"),
    Noun("Puppe", "f", "Puppen", "doll"),
    Noun("Gitarre", "f", "Gitarren", "guitar"),
    Noun("Kissen", "n", "Kissen", "pillow"),
    Noun("Spiegel", "m", "Spiegel", "mirror"),
    Noun("Kiste", "f", "Kisten", "box"),
)

# Things that are read and written.
TEXTS: tuple[Noun, ...] = (
    Noun("Buch", "n", "Bücher", "book"),
    Noun("Brief", "m", "Briefe", "letter"),
    Noun("Zeitung", "f", "Zeitungen", "newspaper"),
    Noun("Gedicht", "n", "Gedichte", "poem"),
    Noun("Rezept", "n", "Rezepte", "recipe"),
    Noun("Nachricht", "f", "Nachrichten", "message"),
    Noun("Geschichte", "f", "Geschichten", "story", "stories"),
    Noun("Satz", "m", "Sätze", "sentence"),
)

# Food that can be counted.
FOODS: tuple[Noun, ...] = (
    Noun("Apfel", "m", "Äpfel", "apple"),
    Noun("Birne", "f", "Birnen", "pear"),
    Noun("Ei", "n", "Eier", "egg"),
    Noun("Kuchen", "m", "Kuchen", "cake"),
    Noun("Kartoffel", "f", "Kartoffeln", "potato", "potatoes"),
    Noun("Zitrone", "f", "Zitronen", "lemon"),
    Noun("Suppe", "f", "Suppen", "soup"),
)

# Food without a plural (the third field is not used).
SUBSTANCES: tuple[Noun, ...] = (
    Noun("Brot", "n", "Brot", "bread"),
    Noun("Käse", "m", "Käse", "cheese"),
    Noun("Butter", "f", "Butter", "butter"),
    Noun("Fleisch", "n", "Fleisch", "meat"),
    Noun("Reis", "m", "Reis", "rice"),
    Noun("Honig", "m", "Honig", "honey"),
    Noun("Salz", "n", "Salz", "salt"),
)

# Drinks without a plural (the third field is not used).
DRINKS: tuple[Noun, ...] = (
    Noun("Wasser", "n", "Wasser", "water"),
    Noun("Milch", "f", "Milch", "milk"),
    Noun("Kaffee", "m", "Kaffee", "coffee"),
    Noun("Tee", "m", "Tee", "tea"),
    Noun("Saft", "m", "Saft", "juice"),
    Noun("Wein", "m", "Wein", "wine"),
    Noun("Bier", "n", "Bier", "beer"),
)

# Places one is in.
ROOMS: tuple[Noun, ...] = (
    Noun("Haus", "n", "Häuser", "house"),
    Noun("Garten", "m", "Gärten", "garden"),
    Noun("Schule", "f", "Schulen", "school"),
    Noun("Kirche", "f", "Kirchen", "church"),
    Noun("Stadt", "f", "Städte", "city"),
    Noun("Dorf", "n", "Dörfer", "village"),
    Noun("Park", "m", "Parks", "park"),
    Noun("Wald", "m", "Wälder", "forest"),
    Noun("Bahnhof", "m", "Bahnhöfe", "station"),
    Noun("Küche", "f", "Küchen", "kitchen"),
    Noun("Büro", "n", "Büros", "office"),
    Noun("Museum", "n", "Museen", "museum"),
    Noun("Theater", "n", "Theater", "theatre"),
    Noun("Hotel", "n", "Hotels", "hotel"),
    Noun("Schloss", "n", "Schlösser", "castle"),
    Noun("Fabrik", "f", "Fabriken", "factory"),
)

# Places one is on.
SURFACES: tuple[Noun, ...] = (
    Noun("Brücke", "f", "Brücken", "bridge"),
    Noun("Berg", "m", "Berge", "mountain"),
    Noun("Insel", "f", "Inseln", "island"),
    Noun("Straße", "f", "Straßen", "street"),
    Noun("Dach", "n", "Dächer", "roof"),
    Noun("Schiff", "n", "Schiffe", "ship"),
)

# Events that something is before or after.
EVENTS: tuple[Noun, ...] = (
    Noun("Konzert", "n", "Konzerte", "concert"),
    Noun("Spiel", "n", "Spiele", "game"),
    Noun("Prüfung", "f", "Prüfungen", "exam"),
    Noun("Hochzeit", "f", "Hochzeiten", "wedding"),
    Noun("Reise", "f", "Reisen", "journey"),
    Noun("Sturm", "m", "Stürme", "storm"),
    Noun("Pause", "f", "Pausen", "break"),
)

# Adjectives for people and animals.
PERSON_ADJECTIVES: tuple[Adjective, ...] = (
    Adjective("alt", "old"),
    Adjective("groß", "big"),
    Adjective("klein", "small"),
    Adjective("schön", "beautiful"),
    Adjective("jung", "young"),
    Adjective("klug", "clever"),
    Adjective("müde", "tired", "müd"),
    Adjective("glücklich", "happy"),
    Adjective("traurig", "sad"),
    Adjective("freundlich", "friendly"),
    Adjective("faul", "lazy"),
    Adjective("mutig", "brave"),
    Adjective("reich", "rich"),
    Adjective("arm", "poor"),
    Adjective("krank", "sick"),
    Adjective("gesund", "healthy"),
    Adjective("hungrig", "hungry"),
    Adjective("berühmt", "famous"),
    Adjective("nervös", "nervous"),
    Adjective("ehrlich", "honest"),
)

# Adjectives for things, texts, places and events.
THING_ADJECTIVES: tuple[Adjective, ...] = (
    Adjective("alt", "old"),
    Adjective("neu", "new"),
    Adjective("groß", "big"),
    Adjective("klein", "small"),
    Adjective("schön", "beautiful"),
    Adjective("rot", "red"),
    Adjective("blau", "blue"),
    Adjective("grün", "green"),
    Adjective("gelb", "yellow"),
    Adjective("schwarz", "black"),
    Adjective("braun", "brown"),
    Adjective("grau", "grey"),
    Adjective("teuer", "expensive", "teur"),
    Adjective("billig", "cheap"),
    Adjective("schwer", "heavy"),
    Adjective("leicht", "light"),
    Adjective("lang", "long"),
    Adjective("kurz", "short"),
    Adjective("sauber", "clean"),
    Adjective("schmutzig", "dirty"),
    Adjective("nützlich", "useful"),
    Adjective("dunkel", "dark", "dunkl"),
)

# Adjectives for places and events.
PLACE_ADJECTIVES: tuple[Adjective, ...] = (
    Adjective("alt", "old"),
    Adjective("neu", "new"),
    Adjective("groß", "big"),
    Adjective("klein", "small"),
    Adjective("schön", "beautiful"),
    Adjective("berühmt", "famous"),
    Adjective("modern", "modern"),
    Adjective("lang", "long"),
)

# Adjectives for food and drink.
FOOD_ADJECTIVES: tuple[Adjective, ...] = (
    Adjective("frisch", "fresh"),
    Adjective("kalt", "cold"),
    Adjective("warm", "warm"),
    Adjective("heiß", "hot"),
    Adjective("süß", "sweet"),
    Adjective("gut", "good"),
    Adjective("billig", "cheap"),
    Adjective("teuer", "expensive", "teur"),
)

NAMES: tuple[str, ...] = (
    "Anna",
    "Paul",
    "Maria",
    "Peter",
    "Clara",
    "Martin",
    "Eva",
    "Lena",
    "Max",
    "Emma",
)

# Times that go with the present tense.
TODAY: tuple[Phrase, ...] = (
    Phrase("heute", "today"),
    Phrase("jetzt", "now"),
    Phrase("jeden Tag", "every day"),
    Phrase("jede Woche", "every week"),
    Phrase("jedes Jahr", "every year"),
)

# Times that go with the perfect tense.
YESTERDAY: tuple[Phrase, ...] = (
    Phrase("gestern", "yesterday"),
    Phrase("vorgestern", "the day before yesterday"),
    Phrase("letzte Woche", "last week"),
    Phrase("letztes Jahr", "last year"),
    Phrase("neulich", "recently"),
    Phrase("damals", "back then"),
)

# Times that go with modals and the future.
TOMORROW: tuple[Phrase, ...] = (
    Phrase("morgen", "tomorrow"),
    Phrase("übermorgen", "the day after tomorrow"),
    Phrase("nächste Woche", "next week"),
    Phrase("nächstes Jahr", "next year"),
    Phrase("bald", "soon"),
    Phrase("später", "later"),
)

# Parts of the day and the year, with any tense.
DAY_PARTS: tuple[Phrase, ...] = (
    Phrase("am Morgen", "in the morning"),
    Phrase("am Nachmittag", "in the afternoon"),
    Phrase("am Abend", "in the evening"),
    Phrase("in der Nacht", "at night"),
    Phrase("am Mittag", "at noon"),
    Phrase("um Mitternacht", "at midnight"),
    Phrase("am Wochenende", "at the weekend"),
    Phrase("im Frühling", "in spring"),
    Phrase("im Sommer", "in summer"),
    Phrase("im Herbst", "in autumn"),
    Phrase("im Winter", "in winter"),
)

WEEKDAYS: tuple[Phrase, ...] = (
    Phrase("Montag", "Monday"),
    Phrase("Dienstag", "Tuesday"),
    Phrase("Mittwoch", "Wednesday"),
    Phrase("Donnerstag", "Thursday"),
    Phrase("Freitag", "Friday"),
    Phrase("Samstag", "Saturday"),
    Phrase("Sonntag", "Sunday"),
)

MONTHS: tuple[Phrase, ...] = (
    Phrase("Januar", "January"),
    Phrase("Februar", "February"),
    Phrase("März", "March"),
    Phrase("April", "April"),
    Phrase("Mai", "May"),
    Phrase("Juni", "June"),
    Phrase("Juli", "July"),
    Phrase("August", "August"),
    Phrase("September", "September"),
    Phrase("Oktober", "October"),
    Phrase("November", "November"),
    Phrase("Dezember", "December"),
)

# In the dative plural after vor and in.
UNITS: tuple[Phrase, ...] = (
    Phrase("Minuten", "minutes"),
    Phrase("Stunden", "hours"),
    Phrase("Tagen", "days"),
    Phrase("Wochen", "weeks"),
    Phrase("Monaten", "months"),
    Phrase("Jahren", "years"),
)

# Before the English verb, after its auxiliary.
FREQUENCIES: tuple[Phrase, ...] = (
    Phrase("oft", "often"),
    Phrase("immer", "always"),
    Phrase("nie", "never"),
    Phrase("manchmal", "sometimes"),
    Phrase("meistens", "usually"),
    Phrase("auch", "also"),
    Phrase("fast nie", "almost never"),
)

# After the English object.
MANNERS: tuple[Phrase, ...] = (
    Phrase("gern", "gladly"),
    Phrase("leise", "quietly"),
    Phrase("laut", "loudly"),
    Phrase("langsam", "slowly"),
    Phrase("sorgfältig", "carefully"),
    Phrase("sofort", "immediately"),
    Phrase("wieder", "again"),
    Phrase("allein", "alone"),
)

# Places without a noun.
HERE: tuple[Phrase, ...] = (
    Phrase("hier", "here"),
    Phrase("dort", "there"),
    Phrase("draußen", "outside"),
    Phrase("drinnen", "inside"),
    Phrase("überall", "everywhere"),
    Phrase("zu Hause", "at home"),
)

# First in the sentence in both languages.
OPINIONS: tuple[Phrase, ...] = (
    Phrase("vielleicht", "perhaps"),
    Phrase("leider", "unfortunately"),
    Phrase("endlich", "finally"),
    Phrase("natürlich", "naturally"),
    Phrase("wahrscheinlich", "probably"),
    Phrase("plötzlich", "suddenly"),
)

# Before a predicate adjective.
DEGREES: tuple[Phrase, ...] = (
    Phrase("sehr", "very"),
    Phrase("zu", "too"),
    Phrase("ziemlich", "quite"),
    Phrase("wirklich", "really"),
)

# Prepositions of place with the dative, for any place.
NEIGHBOURS: tuple[Phrase, ...] = (
    Phrase("vor", "in front of"),
    Phrase("hinter", "behind"),
    Phrase("neben", "next to"),
)

# Prepositions of direction, and their case: for rooms and for surfaces.
ROOM_WAYS: tuple[tuple[Phrase, str], ...] = (
    (Phrase("in", "into"), "acc"),
    (Phrase("durch", "through"), "acc"),
    (Phrase("zu", "to"), "dat"),
    (Phrase("aus", "out of"), "dat"),
)
SURFACE_WAYS: tuple[tuple[Phrase, str], ...] = (
    (Phrase("über", "over"), "acc"),
    (Phrase("zu", "to"), "dat"),
    (Phrase("auf", "onto"), "acc"),
)

# Conjunctions that put the German verb last, any tenses.
REASONS: tuple[Phrase, ...] = (
    Phrase("weil", "because"),
    Phrase("obwohl", "although"),
)

# Conjunctions that put the German verb last, both clauses in the present.
MOMENTS: tuple[Phrase, ...] = (
    Phrase("wenn", "when"),
    Phrase("während", "while"),
    Phrase("bevor", "before"),
)
