"""Text that scales are calibrated on where the user gives none.

It shares nothing with the texts of the proof: what they measure is how far these scales hold for other text.
"""

PROSE = (
    """The museum opens at nine. Inside, a long corridor leads past maps, compasses and the model of a ship that never
sailed. Children press their noses to the glass; a guard, half asleep, hums a tune from the radio. "Do not touch," says
the sign, and below it, in pencil: "Why not?" On Thursdays entry is free, but the coffee costs 4.50 and the queue
reaches the street. Nobody minds. The windows look out over the harbour, where cranes lift boxes in red, blue and green
from one ship to the next, all day long.""",
    """import csv
from collections import defaultdict


def totals(path: str) -> dict[str, float]:
    \"\"\"Sums the column `amount` by `name`; skips lines that are damaged.\"\"\"
    result = defaultdict(float)
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            try:
                result[row["name"]] += float(row["amount"])
            except (KeyError, ValueError) as error:
                print(f"skipped {row!r}: {error}")
    return dict(sorted(result.items(), key=lambda pair: -pair[1]))


if __name__ == "__main__":
    for name, amount in totals("ledger.csv").items():
        print(f"{name:<20}{amount:>12,.2f}")
""",
    """Am Morgen lag Nebel über dem Fluss. Die Fähre fuhr trotzdem, langsam und mit brennenden Lampen; niemand sprach.
El mercado abre a las ocho y cierra cuando se acaba el pescado, casi siempre antes del mediodía. Le boulanger connaît
chaque client par son nom, et même le chien du facteur. Il treno per Bologna parte dal binario 7 con dieci minuti di
ritardo. Поезд идёт на север. 今日はいい天気ですね。请在这里等我。""",
    """Question: A farmer has 17 sheep, and all but 9 run away. How many are left?
Answer: 9, because "all but nine" means that nine stay.

Question: What is the boiling point of water at sea level in degrees Fahrenheit?
Answer: 212 degrees; in Celsius it is 100, and in kelvins 373.15.

Question: Name three rivers in Africa.
Answer: The Nile, the Congo and the Zambezi.

Question: Is 91 a prime number?
Answer: No. 91 = 7 * 13.""",
    """| city | country | population | founded |
|---|---|---:|---:|
| Lund | Sweden | 94,703 | 990 |
| Porto | Portugal | 231,800 | 1123 |
| Cusco | Peru | 428,450 | 1100 |

See also: https://example.org/cities?page=2&sort=name (last visited 3 May 2021). Notes: [1] estimates differ; [2] the
oldest record is from 1085. {"id": 4711, "tags": ["old", "river"], "area_km2": 41.42, "twin": null}""",
    """Photosynthesis turns light into chemical energy. In the first step, chlorophyll absorbs photons and gives off
electrons; in the second, carbon dioxide is fixed into sugars. The overall reaction is 6 CO2 + 6 H2O -> C6H12O6 + 6 O2;
it takes place in the chloroplasts of plants and algae. Some bacteria do without water and use hydrogen sulfide
instead, which leaves sulfur behind rather than oxygen. About half of all photosynthesis happens in the sea.""",
    """Dear Ms Okafor,

thank you for your letter of 12 March. I am sorry that the parcel arrived damaged. We will send a new lamp today, free
of charge, and you need not return the old one. Could you tell us whether the box was wet, and who signed for it? If you
would rather have your money back, please write to me by the end of the month.

With kind regards,
T. Lindqvist
Customer service""",
    """WITCH: Who knocks so late?
BOY: Only the wind, madam, and I.
WITCH: The wind I know. You I do not. What do you want?
BOY: My sister's shadow. You took it on Sunday, while she slept.
WITCH: (laughing) Did I! And what will you give me for it?
BOY: A riddle. If you cannot solve it by dawn, the shadow is ours again.""",
)
"""Prose, a program, four scripts, questions, a table, science, a letter and a play: about 1200 tokens."""
