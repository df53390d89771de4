"""Word lists of the built-in tasks, written for this library; each is one token of GPT-2's tokenizer."""

NAMES = (
    "Mary John Anna Paul Laura Tom Kate Mark Sarah James Alice Peter Emma David Lucy Simon Rose Adam Julia Henry "
    "Grace Martin Clara Victor Helen Oscar Diana Frank Nora Louis Ruth George Ruby Walter Jane Felix Iris Leo Amy Max "
    "Robert Linda Daniel Susan Kevin Lisa Brian Nancy Steven Karen Andrew Betty Joshua Donna Ryan Carol Jason Amanda "
    "Eric Maria"
).split()

PLACES = (
    "store park school office garden station hospital library market restaurant beach museum house church hotel "
    "theater bank farm airport lake"
).split()

OBJECTS = (
    "drink ring book kiss letter basketball bone computer snack ticket flower cake card gift map key coat lamp pen "
    "camera"
).split()

EVENTS = (
    "war siege trial voyage project campaign program mission reign tour study exhibit conflict famine strike dynasty "
    "battle journey festival treaty crisis trip revolt season expedition debate operation plan"
).split()
