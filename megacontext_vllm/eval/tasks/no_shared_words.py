"""A fact that is asked for in other words: nothing that looks for the question's words can find it."""

from megacontext_vllm.eval.sample import CHOICES
from megacontext_vllm.eval.tasks.base import Question, depths
from megacontext_vllm.eval.tasks.planted import Fact, PlantedTask
from megacontext_vllm.eval.tasks.values import Values

TEMPLATES: tuple[tuple[str, str, str], ...] = (
    (
        "A blizzard buried {} lorries on the motorway.",
        "trucks were trapped on the highway by the snowstorm",
        "trapped trucks",
    ),
    ("Beside the Eiffel Tower a baker sold {} croissants.", "pastries were bought in Paris", "pastries"),
    ("The surgeon removed {} stitches from a sailor.", "sutures did the doctor take out of the seaman", "sutures"),
    ("Burglars stole {} diamonds from the jeweller.", "gems did the thieves take", "gems"),
    ("The orchestra owns {} violins.", "string instruments do the musicians have", "instruments"),
    ("Firefighters rescued {} infants from the blaze.", "babies were saved when the building burned", "babies"),
    ("The monks brewed {} barrels of ale.", "casks of beer did the abbey make", "casks"),
    ("An earthquake flattened {} cottages.", "houses collapsed when the ground shook", "houses"),
    ("The shepherd sheared {} ewes before noon.", "sheep lost their wool in the morning", "sheep"),
    (
        "Astronomers counted {} comets through the telescope.",
        "objects did the scientists see in the night sky",
        "objects",
    ),
    ("The cobbler repaired {} boots in winter.", "shoes were mended during the cold season", "shoes"),
    ("The steamship carried {} passengers to America.", "people sailed over the ocean", "people"),
    ("The librarian lent {} novels to pupils.", "books did the schoolchildren borrow", "books"),
    ("The florist wrapped {} roses for the bride.", "flowers were prepared for the wedding", "flowers"),
    ("Poachers shot {} elephants in Kenya.", "big animals were killed illegally in Africa", "animals"),
    ("The miller ground {} sacks of wheat.", "bags of grain became flour", "bags"),
    ("A thunderstorm uprooted {} oaks.", "trees fell because of the bad weather", "trees"),
    ("The tailor sewed {} trousers for the army.", "garments were made for the soldiers", "garments"),
    ("The inn replaced {} mattresses upstairs.", "beds were renewed for hotel guests", "beds"),
    ("The optician sold {} spectacles in March.", "pairs of glasses did customers buy in one month", "glasses"),
    ("The constable arrested {} pickpockets.", "criminals did the police officer catch", "criminals"),
    ("The dentist pulled {} molars last year.", "teeth were extracted over twelve months", "teeth"),
    ("The trawler netted {} herring at dawn.", "fish were caught early in the day", "fish"),
    ("The museum acquired {} canvases by Rembrandt.", "paintings did the gallery buy", "paintings"),
    ("The choir rehearsed {} hymns in the chapel.", "songs did the singers practise at church", "songs"),
    ("The spy photographed {} documents at the embassy.", "confidential papers did the secret agent copy", "papers"),
    ("The plumber fixed {} leaking taps.", "dripping faucets were repaired", "faucets"),
    ("The stonemason carved {} statues out of marble.", "sculptures were made of rock", "sculptures"),
    ("Her orchard yielded {} apples that autumn.", "pieces of fruit were harvested in the fall", "pieces"),
    ("The hens laid {} eggs at Easter.", "things did the chickens produce during a spring holiday", "things"),
    ("Archaeologists unearthed {} coins near Rome.", "pieces of old money were dug up in Italy", "pieces of money"),
    ("The tutor corrected {} essays overnight.", "homework papers did the teacher mark before sunrise", "papers"),
)
"""What is hidden, how many of what is asked for, and what is counted, in the question's words."""


class NoSharedWords(PlantedTask):
    """The wrong candidates are the numbers of other facts, hidden in the same history."""

    name = "no_shared_words"
    summary = "a number that is asked for without any word of the sentence that states it"

    def plan(self, values: Values, length: int, seed: int) -> tuple[list[Fact], list[Question]]:
        rng = values.rng
        numbers = values.numbers(CHOICES, digits=4)
        at = depths(CHOICES, seed)
        rng.shuffle(at)
        facts, questions = [], []
        for i, (fact, asked, counted) in enumerate(rng.sample(TEMPLATES, CHOICES)):
            facts.append(Fact(f" {fact.format(numbers[i])}", at[i]))
            wrong = tuple(f" {number}" for number in numbers if number != numbers[i])
            question = f"How many {asked}?"
            questions.append(Question(question, f"The number of {counted} is", f" {numbers[i]}", wrong, (i,)))
        return facts, questions
