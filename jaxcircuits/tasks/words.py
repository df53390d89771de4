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

WOMEN = (
    "Mary Anna Laura Kate Sarah Alice Emma Lucy Rose Julia Grace Clara Helen Diana Nora Ruth Ruby Jane Amy Linda Susan "
    "Lisa Nancy Karen Betty Donna Carol Amanda Maria Emily Olivia Sophie Elizabeth Margaret Catherine Hannah Rachel "
    "Rebecca Jessica Ashley Nicole Michelle Heather Barbara Dorothy Charlotte Victoria Elena Molly Claire Melissa Katie"
).split()

MEN = (
    "John Paul Tom Mark James Peter David Simon Adam Henry Martin Victor Oscar Frank Louis George Walter Felix Leo Max "
    "Robert Daniel Kevin Brian Steven Andrew Joshua Ryan Jason Eric William Thomas Charles Richard Joseph Edward Jack "
    "Michael Matthew Patrick Philip Roger Arthur Albert Harry Jeremy Kenneth Gregory Samuel Benjamin Nathan Stephen"
).split()

SURNAMES = (
    "Smith Brown Miller Davis Wilson Taylor Moore Clark Lewis Walker Hall Young King Wright Scott Baker Nelson Hill "
    "Carter Mitchell Roberts Turner Phillips Parker Evans Edwards Collins Stewart Morris Rogers Reed Cook Morgan Bell "
    "Murphy Bailey Cooper Richardson Cox Howard Ward Peterson Gray Watson Brooks Kelly Sanders Price Bennett Wood "
    "Barnes Ross Henderson"
).split()

ADJECTIVES = (
    "old new red green blue small large heavy broken golden wooden silver yellow little strange famous quiet modern "
    "ancient dark bright cheap expensive dirty clean private public local empty hidden"
).split()

ARGUMENTS = (
    "path name value data file size width height color label index count total limit offset start stop step rate scale "
    "shape mode kind level depth key token text line word page title author owner source target input output result "
    "error status state event signal port host server client user group role node edge parent child root branch graph "
    "table column row cell field record query filter sort order image frame sound video model layer weight batch seed "
    "score cost price amount date time year month day hour timeout delay speed length region zone country city street "
    "code format version buffer cache queue stack array matrix vector point angle radius flag item range"
).split()

NOUNS = (
    "river bread storm window doctor paper silver winter market engine bridge forest stone glass castle tower church "
    "school library station gold iron metal orange apple rice sword shield arrow horse snake cloud square letter story "
    "music motor circle piece unit"
).split()
