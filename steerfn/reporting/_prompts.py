"""Prompts and plain text for those who name none: everyday subjects, in English, written for this package."""

PROMPTS = (
    "Tell me about your week.",
    "What should I cook for dinner tonight?",
    "Describe a walk through a small town.",
    "How do I learn to play the guitar?",
    "Write a short letter to a neighbour.",
    "What makes a good teacher?",
    "Tell me about a trip to the sea.",
    "How does a bicycle stay upright?",
    "Describe the view from a train window.",
    "What is it like to move to a new city?",
    "Give me a few ideas for a rainy afternoon.",
    "How would you spend a day off?",
    "Write a few sentences about autumn.",
    "What do people talk about at breakfast?",
    "Explain how bread is made.",
    "Describe an old house on a hill.",
    "What should I read next?",
    "How do plants grow from seeds?",
    "Tell me something about the night sky.",
    "Write a note for the office kitchen.",
    "What happens at a flea market?",
    "How can I remember people's names?",
    "Describe the first day at a new job.",
    "What is a good way to start a conversation?",
    "Tell me about a game that children play.",
    "How do bees find their way home?",
    "Write the opening of a story about a lighthouse.",
    "What should I pack for a weekend in the mountains?",
    "Describe a market on a Saturday morning.",
    "How does the tide work?",
    "Tell me about a meal with friends.",
    "What would you ask a person who lived a hundred years ago?",
    "Write a review of a local library.",
    "How do I look after a house plant?",
    "Describe a long wait at a station.",
    "What is the use of a map?",
    "Tell me about a visit to the dentist.",
    "How do people celebrate the new year?",
    "Write a message to cancel an appointment.",
    "What can be seen from the top of a tower?",
)
"""Open questions that lean neither way: what is true of them need not be true of the prompts a vector is meant for."""

PASSAGES = (
    "The library opens at nine and closes at six. On Saturdays it opens an hour later. Books may be borrowed for "
    "four weeks, and the loan can be renewed twice unless another reader has asked for the book.",
    "A river carries sand and gravel from the hills to the plain. Where the water slows down, the heavier grains "
    "settle first, and the fine mud travels on until it reaches the sea.",
    "To make a simple soup, cut an onion and two carrots into small pieces and cook them in a little oil. Add water, "
    "salt and a handful of lentils, and let it simmer for half an hour.",
    "The bridge was built in the last years of the century, when the old ferry could no longer carry the traffic. It "
    "has seven arches of stone, and a narrow footpath runs along its northern side.",
    "Glass is made by melting sand together with soda and lime. The mixture becomes liquid at a high temperature and "
    "stiffens slowly as it cools, so that it can be blown, pressed or drawn into sheets.",
    "The meeting began with a report on the budget. After a short discussion the members agreed to repair the roof "
    "in spring and to put off the new windows until the following year.",
    "Sound travels faster through water than through air, and faster still through steel. This is why a train can be "
    "heard in the rails long before it can be heard by the side of the track.",
    "The island has two villages, one on each side of the hill. A bus goes from one to the other four times a day, "
    "and the last boat to the mainland leaves at half past seven.",
    "Most birds that breed in the north leave before winter. They follow coasts, rivers and mountain ranges, and "
    "some of them return every year to the same tree in which they were hatched.",
    "The engine is checked every ten thousand kilometres. The oil and its filter are changed, the belts are "
    "inspected for cracks, and the pressure of the tyres is set to the value in the handbook.",
    "Paper was first made from rags, which were soaked and beaten to a pulp. A frame with a fine sieve was dipped "
    "into the vat, and the thin layer of fibres that stayed on it was pressed and dried.",
    "The new timetable begins on the first Monday of the month. Trains to the coast will leave from platform three, "
    "and those to the capital from platform five, as they did before the station was rebuilt.",
    "A contract is an agreement that a court will enforce. One side makes an offer, the other accepts it, and each "
    "gives something of value in return, be it money, goods or a promise.",
    "The garden lies behind a low wall. Apple trees grow along the path, and in the far corner, where the ground is "
    "damp, there is a small pond with reeds and a wooden bench beside it.",
    "Numbers were written with letters in many old languages. The signs that we use today came from India by way of "
    "the Arab world, and with them came a sign for nothing, which made long sums easier.",
    "Before the concert the players tune their instruments to a single note. It is given by the oboe, because its "
    "pitch is steady and its sound carries well through the noise of an orchestra.",
)
"""Plain statements of fact, on which the cost of steering is measured."""
