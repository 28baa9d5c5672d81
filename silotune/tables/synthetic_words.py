"""What synthetic merchants are made of: categories with rhythm and price, brands, places."""

from dataclasses import dataclass

__all__ = ["ADJECTIVES", "AGES", "BRANDS", "CATEGORIES", "PLACEMENTS", "Category", "Placement"]


@dataclass(frozen=True, slots=True)
class Category:
    """A category of goods: where it stands, how often a household needs it, what it costs."""

    department: str
    name: str
    nouns: tuple[str, ...]
    sizes: tuple[str, ...]
    price: float
    """Typical list price."""
    rhythm: float
    """Typical days between two purchases."""


@dataclass(frozen=True, slots=True)
class Placement:
    """A place where a promotion is seen, and how much it draws by itself (log scale)."""

    name: str
    mechanic: str
    pull: float


def _category(line: str) -> Category:
    department, name, nouns, sizes, price, rhythm = line.split("|")
    return Category(
        department,
        name,
        tuple(nouns.split(",")),
        tuple(sizes.split(",")),
        float(price),
        float(rhythm),
    )


CATEGORIES = tuple(
    map(
        _category,
        """\
dairy|milk|whole milk,skim milk,lactose free milk,buttermilk|500 ml,1 l,2 l|1.6|6
bakery|bread|wheat bread,rye bread,sandwich loaf,baguette|250 g,500 g,750 g|2.4|6
produce|apples|red apples,green apples,cooking apples|500 g,1 kg,2 kg|2.9|9
household|laundry detergent|liquid detergent,washing powder,capsules|20 loads,40 loads|9.5|40
drinks|coffee|ground coffee,espresso beans,instant coffee,coffee pods|250 g,500 g,1 kg|7.9|21
snacks|chocolate|milk chocolate,dark chocolate,hazelnut chocolate,pralines|100 g,200 g|2.2|12
frozen|frozen pizza|pizza margherita,pizza salami,vegetable pizza,pizza tonno|320 g,400 g|3.4|15
pet care|cat food|cat food with tuna,cat food with chicken,dry cat food|85 g,400 g,2 kg|4.8|10
dairy|yogurt|plain yogurt,strawberry yogurt,greek yogurt,drinking yogurt|150 g,500 g|1.3|7
produce|tomatoes|vine tomatoes,cherry tomatoes,plum tomatoes|250 g,500 g,1 kg|2.6|8
personal care|shampoo|repair shampoo,baby shampoo,mild shampoo|250 ml,400 ml|4.2|45
drinks|mineral water|still water,sparkling water,flavored water|500 ml,1.5 l,6 x 1.5 l|2.1|8
meat|chicken|chicken breast,chicken thighs,whole chicken|400 g,600 g,1.2 kg|7.2|11
snacks|potato chips|salted chips,paprika chips,sour cream chips|90 g,150 g,250 g|2.3|14
pantry|pasta|spaghetti,penne,fusilli,lasagne sheets|500 g,1 kg|1.5|18
household|toilet paper|soft toilet paper,recycled toilet paper|8 rolls,16 rolls|5.6|24
baby|diapers|newborn diapers,pull up diapers,night diapers|32 ct,64 ct|14.0|14
drinks|beer|lager,pale ale,wheat beer,alcohol free beer|330 ml,500 ml,6 x 330 ml|5.1|16
dairy|cheese|cheddar,gouda,mozzarella,cream cheese|150 g,250 g,400 g|3.6|10
frozen|ice cream|vanilla ice cream,chocolate ice cream,fruit sorbet|500 ml,1 l|4.4|20
produce|bananas|bananas,organic bananas,baby bananas|500 g,1 kg|1.7|7
pantry|breakfast cereal|corn flakes,granola,oat flakes,honey rings|375 g,500 g,750 g|3.3|19
personal care|toothpaste|whitening toothpaste,herbal toothpaste,kids toothpaste|75 ml,125 ml|2.5|38
pet care|dog food|dog food with beef,dog food with lamb,dog biscuits|400 g,800 g,5 kg|6.3|12
meat|sausage|smoked sausage,bratwurst,chorizo|200 g,400 g|4.1|15
drinks|orange juice|orange juice,orange juice with pulp,blood orange juice|1 l,1.5 l|2.8|11
pantry|olive oil|extra virgin olive oil,mild olive oil,lemon olive oil|500 ml,750 ml,1 l|8.4|42
bakery|pastries|croissants,cinnamon rolls,apple turnovers|2 ct,4 ct|3.0|10
household|dish soap|lemon dish soap,dishwasher tablets,rinse aid|500 ml,40 ct|4.0|35
seafood|salmon|salmon fillet,smoked salmon,salmon steaks|150 g,300 g|9.9|20
snacks|nuts|roasted almonds,cashews,mixed nuts,pistachios|150 g,300 g|4.6|18
drinks|tea|green tea,black tea,herbal tea,fruit tea|20 bags,50 bags|2.7|33
pantry|rice|basmati rice,jasmine rice,risotto rice|500 g,1 kg|2.5|30
produce|salad|iceberg lettuce,mixed leaves,rocket|100 g,200 g|1.9|8
personal care|shower gel|citrus shower gel,sensitive shower gel|250 ml,400 ml|2.6|32
frozen|frozen vegetables|garden peas,spinach,stir fry mix|450 g,750 g|2.4|17
baby|baby food|carrot puree,apple puree,rice porridge|125 g,190 g|1.4|9
drinks|wine|red wine,white wine,rose wine,sparkling wine|375 ml,750 ml|7.5|22
pantry|tomato sauce|basil tomato sauce,spicy tomato sauce|350 g,500 g|2.2|20
stationery|greeting cards|birthday card,thank you card,gift wrap|1 ct,5 ct|3.2|48""".splitlines(),
    )
)

BRANDS = (
    "Alder", "Bellweather", "Cobalt", "Dunmore", "Eastgate", "Fennel & Co", "Goldhorn", "Hearth",
    "Ivory", "Juniper", "Kestrel", "Larkspur", "Meridian", "Northfield", "Oakline", "Pemberton",
    "Quill", "Redbarn", "Summit", "Thistle", "Umbra", "Verdant", "Willow", "Store Choice",
)  # fmt: skip

ADJECTIVES = ("classic", "organic", "family", "premium", "light", "everyday", "original", "select")

AGES = ("18-24", "25-34", "35-44", "45-54", "55-64", "65+")

PLACEMENTS = (
    Placement("store front", "display", 0.8),
    Placement("front end cap", "display", 0.6),
    Placement("in-aisle", "display", 0.2),
    Placement("front page feature", "mailer", 0.7),
    Placement("interior page feature", "mailer", 0.3),
    Placement("newsletter", "coupon", 0.4),
)
