"""The words of the synthetic documents: keys, values, and the grammar of the filler text around them."""

KEYS = tuple(
    """
    badger beaver bison camel condor coyote crane dolphin eagle falcon ferret finch gecko heron ibex
    jaguar koala lemur leopard lynx marten meerkat ocelot otter panther pelican raven salmon sparrow
    tiger walrus wolf acacia alder almond aspen bamboo birch cedar cherry cypress ebony fir hazel
    hemlock juniper larch laurel linden mahogany maple myrtle oak olive palm pine poplar redwood
    rowan sequoia spruce teak walnut willow
    """.split()
)
VALUES = tuple(str(number) for number in range(10, 100))

WORD_CLASSES = {
    "PERSON": tuple(
        """baker captain doctor farmer gardener miller painter sailor shepherd teacher traveller
        widow""".split()
    ),
    "PLACE": tuple(
        """bridge cottage forest garden harbour hill market meadow mill river tavern valley village""".split()
    ),
    "THING": tuple(
        """barrel basket book candle carpet chair clock coat hammer lantern letter mirror rope
        table""".split()
    ),
    "LIKE": tuple("""broken clean dusty heavy large little new old plain round small strange""".split()),
    "DID": tuple("""bought carried cleaned found hid lost mended moved painted sold took wanted""".split()),
    "WENT": tuple("""arrived came hurried rode travelled walked wandered went""".split()),
    "WHEN": tuple(
        """afterwards later once often seldom soon sometimes suddenly then today yesterday""".split()
    ),
    "TIME": tuple("""autumn dawn dusk evening midnight morning noon spring summer winter""".split()),
}

FILLER_SENTENCES = (
    "the PERSON DID a LIKE THING and WENT to the PLACE .",
    "WHEN the PERSON WENT from the PLACE to the PLACE before TIME .",
    "in the TIME the PERSON DID the LIKE THING near the PLACE .",
    "the LIKE THING in the PLACE was WHEN seen by the PERSON .",
    "nobody in the PLACE knew why the PERSON DID the THING .",
    "the PERSON and the PERSON WENT along the LIKE PLACE until TIME .",
    "it was TIME when the PERSON WENT to the PLACE with a THING .",
    "a LIKE PLACE lay behind the PLACE where the PERSON DID a THING .",
)
