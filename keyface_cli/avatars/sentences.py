"""What the voices say: hand-written everyday sentences and a grammar that makes many more.

The held-out sentences are hand-written, and neither list nor grammar of training contains one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

TRAINING_SENTENCES = tuple(
    """
The kettle has been boiling for a while.
My brother fixed the broken fence on Sunday.
Please put the vase back on the upper shelf.
We should leave before the weather gets worse.
Five new people moved into the house next door.
Could you bring me a bottle of water?
She thought the whole film was far too long.
I have never been very good at remembering names.
The bus usually stops right behind the bakery.
Maybe we can meet for a coffee tomorrow.
Push the button twice and wait for the beep.
Both of my boys love playing football.
Where did you buy that beautiful blue umbrella?
The water in the pool was warm and clear.
He laughed so much that he dropped his phone.
You have to measure the room before you buy a carpet.
Thank you for helping me move the piano.
The museum opens at half past nine.
A thick fog covered the valley this morning.
What a wonderful surprise, I did not expect you!
They were shouting over the noise of the engine.
The judge asked him to answer the question.
Peel the potatoes and chop the onions.
Our garden is full of apples and pears this year.
I would rather stay home and watch the rain.
The pilot waved from the open window.
Every evening she walks along the beach with her dog.
How much time do we have before the show?
The puppy chewed up both of my favourite shoes.
Vera found a very old map of the village.
If it breaks again, we will have to buy another one.
The children made a huge mess in the kitchen.
You could hear the church bells from here.
I'm afraid that the fish is not fresh.
Bob paid for the pizza, and Mary paid for the drinks.
The moon looked enormous over the hills.
Nobody told me that the meeting was moved.
It took them three hours to find the path.
The thin thread broke when I pulled it through.
His voice was calm, but his hands were shaking.
Put some more pepper on it, please.
We usually have breakfast in the garden.
Two women were waving flags by the bridge.
Why would anybody throw away a perfectly good chair?
She gave me a huge hug and wished me luck.
The mayor opened the new library yesterday.
I will call you when I get off the plane.
Our teacher always wore yellow shoes.
Fold the paper twice, then cut along the line.
The river froze for the first time in years.
That was the best meal I have ever had.
He blew out all the candles with one breath.
A small boat was moving slowly up the river.
Tell me more about your new job.
The old farmer fed his sheep and went to bed.
No, I do not think that is a good idea.
Yes, of course, you are always welcome.
The market sells bread, butter, and honey.
Watch out, the floor is still wet!
We were both born in the month of May.
My mother used to bake a pie every Friday.
The phone rang just as I was leaving.
Half of the village came to the wedding.
There is a bird on the roof of the garage.
Which of these two would you choose?
The boss promised to pay us by Monday.
I felt a sharp pain in my left shoulder.
The fire brigade arrived within five minutes.
Oh, I almost forgot to feed the cat.
The book fell off the shelf with a bang.
Our flight was delayed because of the storm.
The soup needs a bit more salt.
Can you hear the waves from your bedroom?
She plays the violin, and he plays the drums.
They found oil beneath the frozen lake.
The new law will be voted on in February.
Give me a minute to think about it.
This is probably the oldest tree in the park.
The bear vanished behind a bush.
I wonder whether the shop is still open.
He always puts far too much sugar in his tea.
We watched the snow falling all afternoon.
Mom baked a purple birthday cake for Phoebe.
The waiter brought us four bowls of rice.
You'd better take the early train.
My watch is five minutes slow.
The whole family gathered around the table.
Could somebody please open a window?
Life would be boring without music.
The thief jumped over the wall and ran off.
Have you ever ridden a camel?
The lamp above the table needs a new bulb.
It was my fault, and I am sorry.
Joyful voices echoed through the hall.
Pour the warm milk into a deep bowl.
The views from up there are amazing.
I used to live above a bookshop.
There's nothing wrong with being afraid.
The twins share everything but their shoes.
We need fifty more chairs for the visitors.
A woman with a red hat waved at us.
The boiler makes a funny noise at night.
That box is too heavy for one person.
The train to Bath leaves from platform four.
What would you do if you won a million pounds?
A few leaves were floating on the pond.
My uncle repairs watches and clocks.
Put the lid on, or the water will boil over.
You may borrow my pen, but bring it back.
He found the missing puzzle piece under the sofa.
The weather forecast promised sun and a mild breeze.
She whispered something, and we all laughed.
The movie is about a family who lives on a boat.
Whose bag is this, and why is it open?
The baby woke up and began to babble.
I bought a pair of boots for the mountain.
They have been friends since they were five.
The jury could not agree on a verdict.
Please keep your voice down in here.
The shop on the corner sells fresh bread.
We were shocked by the price of the ring.
A long time ago, this was a fishing village.
The dentist told me to brush more often.
I love the smell of coffee in the morning.
Maybe tomorrow will be a better day.
He moved his chair closer to the fire.
The boys were chasing a ball across the field.
She measured the flour and sifted it twice.
Good evening, and welcome to our programme.
First we stop at the bank, and then at the pharmacy.
The elephant lifted the trunk without any effort.
I can never find my keys when I need them.
Everybody was waiting for the music to begin.
The mouse ran up and down behind the wall.
Would you mind if I opened the window?
The king wore a robe of purple velvet.
Ginger biscuits go very well with tea.
A bumpy path leads to the top of the cliff.
It is easier to give advice than to follow it.
We played cards until four in the morning.
The painter mixed blue and yellow to make green.
You are not going to believe what happened.
The factory makes buttons and zips.
Thirty thousand people came to the match.
We heard a loud pop, and the lights went out.
Usually, I take a short nap after lunch.
The boat rocked back and forth in the waves.
My favourite season has always been autumn.
""".strip().splitlines()
)

HELD_OUT_SENTENCES = tuple(
    """
The postman left a parcel behind the green door.
How long does it take to learn to swim?
Vivian moved her office to the top floor.
I forgot my umbrella on the number five bus.
The farmer's wife makes wonderful blackberry jam.
We ought to visit your grandparents more often.
A huge wave washed over the front of the ship.
Please remember to water the plants in my room.
The fog was so thick that we missed the turning.
She opened the box and found a pair of gloves.
My neighbour's parrot says good morning to everyone.
They built a bridge from nothing but rope and wood.
Did you know that bees can recognise faces?
The choir sang while the snow was falling.
He was too proud to admit that he was wrong.
Just above the village there is a small chapel.
The pump broke down in the middle of the night.
I'll have the mushroom soup and a piece of bread.
Fathers and sons were fishing from the pier.
What is the fastest way to the airport?
Her thumb was swollen after the bee had stung it.
The shop assistant wrapped the present in brown paper.
You could see the lighthouse from our balcony.
Both brothers became famous for their paintings.
It may rain, so take a jacket with you.
The volcano had been quiet for a thousand years.
Every Thursday we play chess with my uncle.
Why are there no chairs in the waiting room?
The cook tasted the sauce and added some basil.
A mechanic had a look at the brakes.
Above all, I enjoyed the walk through the forest.
Our bakery sells about forty loaves before breakfast.
She threw the ball as far as she could.
The lawyer put on his glasses and read the letter.
Perhaps the battery needs to be charged.
Wolves have been seen near the northern border.
I was born and raised in a fishing town.
The puppet show made all of the children giggle.
We found an old photograph beneath the floorboards.
Would it be possible to change my appointment?
The queue went all the way around the building.
His beard has become quite grey over the years.
A yellow taxi was parked in front of the theatre.
The nurse measured my blood pressure twice.
Who would have thought that it could be so easy?
The river bends sharply to the left over there.
My best friend moved to Poland last February.
Just breathe in, breathe out, and relax.
Some people prefer to work with the radio on.
The museum shows puppets, masks, and fans.
He picked up the phone, but nobody answered.
Let me show you how this machine works.
The moth flew straight into the lamp.
We've got plenty of room for both of you.
The whole village smelled of smoke and apples.
Keep the butter in the fridge, please.
A brave young woman jumped in after him.
The invoice must be paid before the end of the month.
You look happy, what happened?
There were five foxes playing in the snow.
""".strip().splitlines()
)

# --- the grammar: a symbol in braces is replaced by one of its choices, "|" between them

_GRAMMAR = {
    "sentence": "{statement}.|{statement}.|{statement}.|{question}?|{order}."
    "|{remark}, {statement}.|{statement}, {joint} {statement}.|{time}, {statement}.|{fact}."
    "|{talk}.",
    "statement": "{who} {did} {thing} {place}|{who} {did} {thing}|{who} {went} {place}"
    "|{thing} {was} {quality}|{who} {feels} {quality_of_person}|{who} {did} {thing} {how}"
    "|{who} {will} {do} {thing} {when}|{thing} {place} {was} {quality}"
    "|{who} {went} {place} {when}|{number} {plural} {were} {place}",
    "question": "did {who} {do} {thing} {when}|where is {thing}|why is {thing} so {quality}"
    "|have you seen {thing} {place}|who will {do} {thing}|can {who} {do} {thing}"
    "|would you like to {do} {thing} {when}|how many {plural} {were} {place}"
    "|do you think that {thing} {was} {quality}|what happened to {thing}",
    "order": "please {do} {thing} {when}|don't {do} {thing}|{do} {thing} {place}"
    "|go and {do} {thing}|let us {do} {thing} {when}|remember to {do} {thing}"
    "|never {do} {thing} {place}",
    "fact": "{plural} and {plural} are {quality}|most {plural} are rather {quality}"
    "|{number} {plural} cost about {number} pounds|{name} has {number} {plural}"
    "|there are {number} {plural} {place}|{name} bought {number} {plural} {when}",
    "talk": "I told {name} that {thing} {was} {quality}|I think {who} {did} {thing}"
    "|everybody knows that {plural} are {quality}|I hope that {who} {will} {do} {thing}"
    "|{name} said that {who} {went} {place}|it seems that {thing} {was} {quality}",
    "remark": "well|oh|you know|honestly|of course|no|yes|look|by the way|in fact|maybe so"
    "|to be fair|believe me|as far as I know|above all|for example|obviously|hopefully",
    "joint": "and|but|so|because|although|while|and then|even though|since|before|after",
    "time": "yesterday|this morning|every evening|on Monday|last February|in the middle of July"
    "|before breakfast|after the show|five years ago|half an hour later|on a warm day in May"
    "|once upon a time|just after midnight|at the weekend|in the beginning|all of a sudden",
    "when": "today|tomorrow|on Thursday|before lunch|after work|right now|every month"
    "|in the evening|at four o'clock|in five minutes|as soon as possible|this weekend|next week"
    "|on my birthday|without asking|whenever possible",
    "how": "very slowly|with both hands|without a word|with pleasure|by mistake|for no reason"
    "|in a hurry|with great care|all by themselves|more than once|for the first time"
    "|again and again|rather badly|better than before|with a smile|for fun",
    "who": "{person}|{person}|{name}|{name}|they|we|I|you|my {relative}|her {relative}"
    "|his {relative}|our {relative}|{name} and {name}|nobody|somebody"
    "|the {quality_of_person} {worker}|both of them|the whole family",
    "person": "the {worker}|a young {worker}|an old {worker}|the other {worker}|that {worker}",
    "worker": "farmer|baker|pilot|nurse|teacher|lawyer|singer|painter|waiter|judge|butcher|driver"
    "|police officer|shepherd|mechanic|dentist|plumber|student|boxer|chef|fisherman|librarian"
    "|visitor|woman|boy|girl|child|professor|musician|author|mayor|thief|queen|magician|sailor",
    "relative": "mother|father|brother|sister|uncle|aunt|cousin|grandfather|wife|husband|daughter"
    "|son|nephew|best friend|boss|neighbour|roommate|flatmate",
    "name": "Bob|Mary|Peter|Phoebe|Vera|Jack|Zoe|George|Ruth|Thomas|Shawn|Judith|Oliver|Hugh"
    "|Wendy|Chloe|Faith|Matthew|Bonnie|Paul|Eve|Yusuf|Maya|Noah|Beth|Philip|Robin|Fiona|Basil"
    "|Kevin|Joy|Ursula|Charles|Heather|Victor|Emma|Abby|Pam|Louise|Ivy",
    "did": "found|bought|moved|painted|fixed|dropped|opened|sold|threw away|picked up|borrowed"
    "|pushed|watched|loved|hated|measured|forgot|wrapped|shook|broke|carried|chose|needed"
    "|described|built|saved|paid for|looked at|talked about|asked for|gave away|burned"
    "|brought back|photographed|hid|polished|enjoyed|noticed|repaired|prepared|caught|put away"
    "|washed",
    "do": "find|buy|move|paint|fix|drop|open|sell|throw away|pick up|borrow|push|watch|measure"
    "|forget|wrap|shake|break|carry|choose|describe|build|save|pay for|look at|talk about|ask for"
    "|give away|bring back|hide|polish|enjoy|notice|repair|prepare|catch|put away|wash|have|touch",
    "will": "will|won't|should|can|could|might|must|may|would rather|is going to",
    "went": "walked|ran|moved|lived|waited|worked|slept|fell|jumped|drove|played football|sang"
    "|stood still|arrived|got lost|was working|was having lunch|laughed|met|stayed|sat down"
    "|read a book|was born|grew up|had a party",
    "feels": "is|was|looks|seems|feels|has become|has never been|used to be|must be|looked",
    "was": "was|is|looks|seems|will be|has become|used to be|could be|is not|was never|smells",
    "were": "are|were|arrived|appeared|are waiting|disappeared|were found|have been seen",
    "thing": "{article} {adjective} {object}|{article} {object}|{article} {object}"
    "|{article} {object} with the {adjective} {part}|my {object}|your {adjective} {object}"
    "|his {object}|her {object}|our {adjective} {object}|this {object}|{number} {plural}"
    "|the {object} of my {relative}|some {adjective} {plural}|that {adjective} {object}",
    "article": "the|the|the|every|another|the other",
    "object": "book|boat|bottle|violin|window|umbrella|piano|mirror|basket|coffee pot|map"
    "|photograph|telephone|bicycle|blanket|bridge|fish|cheese|vase|ring|garage|toothbrush|watch"
    "|feather|thread|wheel|yacht|pearl|judge's wig|treasure|television|pumpkin|balloon|apple pie"
    "|wardrobe|fireplace|mushroom|beach ball|leather bag|newspaper|motorbike|computer|lamp|puzzle"
    "|sofa|jewel|van|shovel|butterfly|letter|film|pill box|cushion|orange juice|cave|breakfast"
    "|job|voice|room|house|noise",
    "plural": "apples|books|boxes|bees|flowers|people|pigeons|shoes|gloves|potatoes|chairs|mice"
    "|wolves|leaves|buttons|beaches|oranges|puppies|bottles|friends|windows|fish|mothers|fathers"
    "|judges|witches|bridges|garages|months|cups|maps|knives|thieves|boys|girls|voices|buses"
    "|ships|pages|pumps|forms|photographs|waves|clothes|teeth|views|balls|bulbs|jobs|farms|poems"
    "|thumbs",
    "part": "handle|button|top|bow|frame|cover|wheels|label|stripes|zip|pocket|edge|feathers|lid",
    "adjective": "big|small|blue|brown|purple|yellow|beautiful|broken|fresh|huge|old|new|heavy"
    "|wooden|funny|favourite|warm|cheap|thin|thick|enormous|ugly|fluffy|shiny|round|fancy|smooth"
    "|empty|golden|missing|precious|strange|valuable|modern|narrow|velvet|rough|orange|foreign",
    "quality": "wonderful|awful|very loud|too small|far too expensive|empty|boring|warm|wet"
    "|beautiful|quite useful|worth the money|smooth|fresh|full of holes|five years old|unusual"
    "|rather thin|heavier than before|good enough|perfect|impossible|enormous"
    "|visible from far away|rotten|shiny|worse than ever|out of order|my favourite|broken"
    "|bigger than a house|fabulous|vague",
    "quality_of_person": "happy|angry|tired|busy|famous|very thoughtful|afraid|bored|hungry"
    "|joyful|brave|lonely|proud|shy|worried|young|helpful|furious|calm|awake|clever|jealous|poor"
    "|rich|ambitious|grateful|surprised|moved|embarrassed|polite",
    "place": "in the garden|on the beach|near the bridge|at the museum|behind the house"
    "|in the river|above the village|under the table|on the roof|at the airport|by the fire"
    "|in the bathroom|between the two chairs|along the path|beneath the floor"
    "|in front of the theatre|in Paris|from the window|on the fifth floor|at work"
    "|in the middle of the room|over the hill|upstairs|through the forest|in my pocket|on the bus"
    "|in the fog|outside the shop|beyond the valley|around the corner|at the farm|in a huge box"
    "|on the moon|off the coast|in the back yard",
    "number": "two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen"
    "|fifteen|twenty|twenty five|forty|fifty|a hundred|a thousand|both|a few|many|several|most",
}
_CHOICES = {symbol: choices.split("|") for symbol, choices in _GRAMMAR.items()}

# The same kind of sentences in the other languages that espeak-ng is given; Italian is held out.
FOREIGN_SENTENCES = {
    "de": """
Guten Morgen, haben Sie gut geschlafen?
Die Kinder spielen im Garten hinter dem Haus.
Über uns fliegen fünf große Vögel.
Ich möchte später noch ein paar Bücher kaufen.
Das Pferd springt über die schmale Brücke.
Wir müssen pünktlich am Bahnhof sein.
Meine Mutter backt am Wochenende Apfelkuchen.
Warum hat mir das niemand vorher gesagt?
Bitte bringen Sie uns noch eine Flasche Wasser.
Der Film war viel zu lang, aber die Musik war schön.
Auf dem Tisch liegen zwei Äpfel und ein Messer.
Er hat vor Freude laut gelacht.
Im Winter wird es hier schon um vier Uhr dunkel.
Vielleicht treffen wir uns morgen im Park.
Das Fenster im Badezimmer ist wieder offen.
Pass auf, die Suppe ist noch sehr heiß!
""",
    "fr": """
Bonjour, comment allez-vous aujourd'hui?
Le petit garçon mange une pomme rouge dans le jardin.
Je voudrais un peu de lumière, s'il vous plaît.
Nous avons besoin de pain et de vin blanc.
La pluie tombe depuis huit heures du matin.
Mon oncle a perdu son parapluie au marché.
Vous pouvez fermer la porte derrière vous?
Ma sœur habite au bord de la mer.
On se retrouve devant le musée à midi.
Les enfants jouaient au ballon sous la fenêtre.
Il fait trop chaud pour travailler.
Tu as vu mes lunettes quelque part?
Elle chante très bien, mais elle est timide.
Un bon repas vaut mieux qu'un long discours.
Le bateau part dans vingt minutes.
J'ai oublié le nom de cette rue.
""",
    "es": """
Buenos días, ¿cómo está usted?
El perro corre por la calle y los niños juegan en el patio.
Mañana vamos a comprar manzanas y queso.
Me gusta mucho la música de esta película.
Ella dijo que hoy no llovería.
¿Puedes traerme un vaso de agua fría?
Mi abuelo vivía en un pueblo pequeño.
No encuentro las llaves del coche.
El tren sale a las nueve y media.
Había mucha gente en la playa.
Siempre desayuno café con pan y mermelada.
Nadie sabe por qué se fue tan pronto.
La profesora abrió la ventana porque hacía calor.
Vamos a ver quién llega primero.
Hemos perdido el último autobús.
Ese sombrero te queda muy bien.
""",
    "pl": """
Dzień dobry, jak się pan ma?
Dzieci bawią się w ogrodzie, a ptaki śpiewają.
Chciałbym kupić świeży chleb i masło.
Moja babcia mieszka na wsi pod lasem.
Czy możesz zamknąć okno, bo jest zimno?
Wczoraj padał deszcz przez cały dzień.
Pociąg do Warszawy odjeżdża o ósmej.
Nie wiem, gdzie położyłem okulary.
Ten film był bardzo śmieszny.
Spotkajmy się jutro przed kinem.
Wszyscy goście przyszli na czas.
Proszę mi podać sól i pieprz.
""",
    "sv": """
God morgon, hur mår du i dag?
Barnen leker i trädgården och fåglarna sjunger.
Jag skulle vilja köpa nybakat bröd.
Min syster bor i ett rött hus vid sjön.
Kan du stänga fönstret, det blåser kallt?
Tåget till Göteborg går klockan åtta.
Vi åt middag tillsammans i köket.
Han har glömt sin blå mössa på bussen.
Det var den bästa film jag har sett.
På sommaren badar vi varje dag.
Hunden sprang efter bollen genom skogen.
Vem har tagit mina nycklar?
""",
    "it": """
Buongiorno, come sta oggi la signora?
Il bambino mangia una mela rossa nel giardino.
Vorrei un bicchiere d'acqua, per favore.
Gli amici giocano a calcio sulla spiaggia.
Mia zia cucina gli gnocchi ogni giovedì.
Domani andiamo al museo con i ragazzi.
Il treno per Bologna parte fra un'ora.
Non ho mai visto un mare così blu.
Chi ha lasciato la porta aperta?
Questa canzone mi piace moltissimo.
Ho comprato pane, formaggio e vino.
Piove da stamattina e fa molto freddo.
Il nonno racconta sempre la stessa storia.
Puoi spegnere la luce, per piacere?
""",
}
_FOREIGN = {name: tuple(text.strip().splitlines()) for name, text in FOREIGN_SENTENCES.items()}


def compose(generator: torch.Generator) -> str:
    """Make one sentence with the grammar: grammatical as a rule, sensible by luck."""
    sentence = _expand("{sentence}", generator)
    return sentence[0].upper() + sentence[1:]


def draw_sentence(generator: torch.Generator, held_out: bool = False, language: str = "en") -> str:
    """Draw a sentence: a held-out one, or else a third hand-written and two thirds composed.

    Other languages than English have hand-written sentences only, the same for both sides: there
    whole languages are held out.
    """
    if language != "en":
        return _pick(_FOREIGN[language], generator)
    if held_out:
        return _pick(HELD_OUT_SENTENCES, generator)
    if int(torch.randint(3, (), generator=generator)) == 0:
        return _pick(TRAINING_SENTENCES, generator)
    return compose(generator)


def _expand(template: str, generator: torch.Generator) -> str:
    head, brace, rest = template.partition("{")
    if not brace:
        return template
    symbol, _, tail = rest.partition("}")
    chosen = _expand(_pick(_CHOICES[symbol], generator), generator)
    return head + chosen + _expand(tail, generator)


def _pick(choices: Sequence[str], generator: torch.Generator) -> str:
    return choices[int(torch.randint(len(choices), (), generator=generator))]
