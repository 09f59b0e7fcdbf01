"""The closed vocabulary of the pocket suite: one word, one token.

A model of half a million parameters cannot also learn a sub-word vocabulary, so pocket texts
use a few hundred words, and the two-digit numbers 00 ... 99 are words of their own.  The order
of `WORDS` is the token ids' order: append only, or every pocket checkpoint breaks.
"""

from __future__ import annotations

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
#: A full stop ends every answer; it is the stop id of the pocket model.
STOP = "."


def _split(text: str) -> list[str]:
    return text.split()


NAMES = _split(
    "alice bruno clara daniel edith felix greta henry irene jacob karen louis maria nathan olivia "
    "peter quincy rachel simon teresa ulrich valerie william xenia yusuf zelda anton bianca cyrus "
    "dora emil flora gustav helga ivan julia kurt linda milo nadia oscar paula ramon silvia tobias "
    "ursula victor wanda xavier yvonne zeno amelia boris carmen derek elsa frank gloria harold "
    "ines jonas katya lorenz monica"
)
CITIES = _split(
    "paris london berlin madrid rome vienna prague oslo dublin lisbon athens cairo tokyo delhi "
    "lima quito boston denver dallas miami seoul bogota havana kyoto zurich geneva munich milan "
    "turin porto lyon nice"
)
JOBS = _split(
    "baker lawyer doctor nurse pilot farmer singer writer teacher sailor miner tailor barber "
    "waiter driver cook painter actor dancer judge guard clerk coach guide priest banker hunter "
    "fisher potter weaver smith mason"
)
FOODS = _split(
    "apples bread cheese soup rice pasta beans eggs honey olives grapes plums figs dates nuts corn "
    "peas carrots onions garlic tofu pizza salad noodles curry waffles yogurt butter cake melons "
    "lentils mangoes"
)
PETS = _split(
    "cat dog rabbit parrot hamster turtle lizard snake goat pony duck goose pig frog mouse ferret "
    "canary gecko spider crab hen owl fox otter badger camel donkey sheep falcon raven toad newt"
)
COLORS = _split(
    "red green blue yellow black white purple orange pink brown gray silver golden violet scarlet "
    "azure crimson beige ivory maroon teal indigo turquoise magenta lilac amber olive khaki cyan "
    "navy coral salmon"
)
NOUNS = _split(
    "table chair lamp window door clock mirror carpet bottle spoon knife fork plate basket bucket "
    "ladder hammer needle candle pillow blanket curtain drawer shelf wallet helmet jacket button "
    "ribbon pencil paper marker folder stapler magnet battery camera radio engine wheel anchor "
    "compass lantern whistle trumpet violin guitar drum flute piano statue fountain bridge tower "
    "castle temple harbor island valley river forest desert glacier volcano meadow canyon cavern "
    "tunnel garden orchard vineyard barn stable market bakery museum library theater stadium "
    "airport station factory warehouse office school hospital prison palace cottage cabin tent "
    "igloo rocket saturn planet comet meteor galaxy nebula crystal diamond emerald ruby pearl "
    "marble granite copper bronze iron steel brass tin zinc cobalt nickel carbon sulfur oven "
    "kettle broom pebble saddle canoe wagon scooter"
)
LABELS = [
    f"{word}_type"
    for word in _split(
        "person location number entity event animal product method disease plant sport vehicle "
        "color currency language religion weapon instrument material planet weather emotion season "
        "shape profession building body symbol game holiday document measure"
    )
]
NUMBERS = [f"{number:02d}" for number in range(100)]
FILLERS = [
    "the grass is tall .",
    "the sky is wide .",
    "the sun is warm .",
    "here we go .",
    "there and back again .",
    "the wind blows over the hills .",
    "nothing happens on this day .",
    "people walk along the road .",
    "it rains for a while .",
    "the night is long and quiet .",
]
_FUNCTION_WORDS = _split(
    ". , : ? answer question passage context the a is of in what which where does do live lives "
    "works as job likes to eat like has pet have favorite color who pass key value number string "
    "remember it text label mentions near and paragraph data pairs read story find examples"
)

_RELATION_WORDS = ["city", "food", "friend"]


def _words() -> list[str]:
    words: dict[str, None] = dict.fromkeys([PAD, BOS, EOS, UNK])
    values = (CITIES, JOBS, FOODS, PETS, COLORS)
    for group in (_FUNCTION_WORDS, NAMES, *values, NOUNS, NUMBERS, LABELS):
        words.update(dict.fromkeys(group))
    for sentence in FILLERS:
        words.update(dict.fromkeys(sentence.split()))
    words.update(dict.fromkeys(_RELATION_WORDS))
    while len(words) % 64:
        words[f"<extra{len(words)}>"] = None
    return list(words)


#: Every token of the pocket model, in the order of its ids.
WORDS: list[str] = _words()
