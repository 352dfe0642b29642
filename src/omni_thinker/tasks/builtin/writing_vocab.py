"""The words of `builtin:writing`: what there is to say about each topic, and the frames it is said in.

Every clause is a main clause in the present tense that holds its word as it stands, so it fits every frame."""

CLAUSES: dict[str, dict[str, tuple[str, ...]]] = {
    "a rainy day": {
        "umbrella": ("two strangers share one umbrella", "a red umbrella turns inside out in the wind"),
        "puddle": ("a child jumps into every puddle", "each puddle holds a piece of grey sky"),
        "window": ("drops race each other down the window", "the cat watches the storm from the window"),
        "boots": ("muddy boots pile up beside the door", "yellow boots squeak along the hall"),
        "tea": ("a pot of tea keeps everyone indoors", "the smell of tea warms the kitchen"),
        "clouds": ("low clouds hide the top of the hill", "dark clouds drift over the rooftops"),
    },
    "the sea": {
        "waves": ("the waves roll softly onto the sand", "small waves carry a bottle to the shore"),
        "gulls": ("hungry gulls circle above the pier", "white gulls follow the fishing boat home"),
        "salt": ("the air tastes of salt", "a thin crust of salt covers the old ropes"),
        "shells": ("children sort their shells by colour", "pink shells glitter along the tide line"),
        "boat": ("a little boat rocks in the harbour", "one boat turns slowly towards the light"),
        "lighthouse": ("the lighthouse blinks through the mist", "an old lighthouse guards the rocks"),
    },
    "a birthday party": {
        "cake": ("the cake leans a little to one side", "everyone asks for a second slice of cake"),
        "candles": ("the candles take three tries to blow out", "eight candles light up the whole room"),
        "balloons": ("the balloons drift up to the ceiling", "bright balloons bob above the garden gate"),
        "friends": ("old friends arrive with flowers", "her friends sing louder than the radio"),
        "music": ("the music spills out into the street", "loud music makes the glasses tremble"),
        "gift": ("the smallest gift gets the biggest smile", "a gift in silver paper waits on the chair"),
    },
    "a garden": {
        "roses": ("the roses lean over the fence", "red roses climb up to the balcony"),
        "bees": ("busy bees drift among the blooms", "the bees find every open flower"),
        "soil": ("the soil smells of last night's rain", "dark soil sticks to her gloves"),
        "seeds": ("tiny seeds wait under the ground", "the birds steal half of the seeds"),
        "tomatoes": ("the first tomatoes turn red", "ripe tomatoes fill the old basket"),
        "bench": ("a wooden bench stands in the shade", "grandfather naps on the bench"),
    },
    "a cat": {
        "whiskers": ("its whiskers twitch at every sound", "milk drips from its whiskers"),
        "tail": ("a striped tail disappears behind the sofa", "its tail sweeps the papers off the desk"),
        "sofa": ("the sofa belongs to the cat by now", "one warm corner of the sofa is always taken"),
        "purr": ("a deep purr fills the quiet room", "the softest purr ends the argument"),
        "mouse": ("the toy mouse never stands a chance", "a clever mouse gets away again"),
        "sunlight": ("the cat stretches in a patch of sunlight", "warm sunlight moves across its fur"),
    },
    "a train trip": {
        "ticket": ("the conductor stamps my ticket with a grin", "a lost ticket turns up in the coat pocket"),
        "station": ("the station hums with hurried steps", "one small station follows another"),
        "seat": ("the best seat faces the mountains", "a stranger offers her seat to a sleepy child"),
        "tunnel": ("every tunnel makes the children cheer", "the long tunnel opens onto a green valley"),
        "fields": ("golden fields slide past the glass", "the fields grow wider with every mile"),
        "suitcase": ("a heavy suitcase blocks the aisle", "the blue suitcase holds far too many books"),
    },
    "winter": {
        "snow": ("fresh snow covers the quiet street", "the snow creaks under every step"),
        "scarf": ("a long scarf hides half of his face", "the snowman wears my best scarf"),
        "fire": ("a small fire crackles in the stove", "the fire keeps the night outside"),
        "ice": ("thin ice closes the pond", "the ice sings beneath the skates"),
        "soup": ("hot soup steams on the table", "a bowl of soup thaws cold fingers"),
        "sled": ("an old sled flies down the hill", "the sled carries three laughing cousins"),
    },
    "a school morning": {
        "bell": ("the bell rings before anyone is ready", "a loud bell ends the gossip"),
        "backpack": ("a heavy backpack bounces up the stairs", "the backpack still smells of bananas"),
        "teacher": ("the teacher greets everyone by name", "a new teacher writes a riddle on the board"),
        "chalk": ("white chalk dusts her sleeves", "the last piece of chalk breaks in two"),
        "bus": ("the yellow bus comes five minutes late", "half the class runs after the bus"),
        "homework": ("the homework lies at home on the desk", "someone copies homework on the steps"),
    },
    "a market": {
        "apples": ("polished apples shine in the sun", "the seller stacks her apples like bricks"),
        "bread": ("warm bread sells out before nine", "the smell of bread leads us to the corner"),
        "cheese": ("a wheel of cheese rolls off the table", "the oldest cheese has the longest queue"),
        "flowers": ("buckets of flowers line the square", "he buys flowers for no reason at all"),
        "coins": ("a handful of coins buys a feast", "old coins clink in a tin box"),
        "basket": ("her basket is full by noon", "a cat sleeps in an empty basket"),
    },
    "a mountain hike": {
        "trail": ("the trail winds through silent pines", "a steep trail leads above the clouds"),
        "summit": ("the summit rewards every aching step", "a cold wind sweeps the summit"),
        "map": ("the map is wrong about the bridge", "a folded map points to a hidden lake"),
        "stream": ("a clear stream fills our bottles", "the stream is colder than it looks"),
        "eagle": ("an eagle glides over the ridge", "a lone eagle circles in silence"),
        "lunch": ("our lunch tastes better up here", "a bold crow steals my lunch"),
    },
    "a kitchen": {
        "oven": ("the oven ticks as it warms up", "something sweet rises in the oven"),
        "spoon": ("a wooden spoon rests across the pot", "everybody wants to lick the spoon"),
        "garlic": ("the smell of garlic drifts upstairs", "crushed garlic sizzles in the pan"),
        "recipe": ("her recipe has no numbers at all", "the old recipe is stained with butter"),
        "plates": ("blue plates wait on the shelf", "the plates are empty within minutes"),
        "flour": ("a cloud of flour hangs over the table", "there is flour on the dog again"),
    },
    "the night sky": {
        "stars": ("a thousand stars come out at once", "the stars look close enough to touch"),
        "moon": ("the moon rises behind the barn", "a thin moon hangs over the river"),
        "telescope": ("the telescope points at a tiny ring", "an old telescope brings the craters close"),
        "comet": ("a faint comet leaves a silver trace", "nobody wants to miss the comet"),
        "owl": ("an owl calls from the dark trees", "the owl is the only one awake"),
        "blanket": ("one blanket is enough for the three of us", "we spread a blanket on the cool grass"),
    },
    "a library": {
        "shelves": ("the shelves reach up to the ceiling", "dust dances between the shelves"),
        "silence": ("the silence is as thick as a novel", "a cough breaks the silence"),
        "novel": ("one novel keeps me there till closing", "a forgotten novel falls open at my feet"),
        "lamp": ("a green lamp glows on every desk", "the last lamp goes out at eight"),
        "pages": ("old pages rustle like leaves", "the pages smell of vanilla and time"),
        "ladder": ("a rolling ladder squeaks along the wall", "someone reads on top of the ladder"),
    },
    "a football match": {
        "goal": ("the first goal comes out of nowhere", "a late goal lifts the whole stand"),
        "crowd": ("the crowd sings in the rain", "a nervous crowd holds its breath"),
        "whistle": ("the whistle cuts through the noise", "one sharp whistle stops the game"),
        "captain": ("the captain points to the sky", "a tired captain refuses to sit down"),
        "grass": ("wet grass sticks to every shirt", "the grass is freshly cut"),
        "keeper": ("the keeper dives to the left", "a brave keeper saves the day"),
    },
    "a new job": {
        "desk": ("my desk is next to the window", "a tidy desk waits for its first mess"),
        "coffee": ("the coffee is stronger than expected", "fresh coffee brings the team together"),
        "colleagues": ("my colleagues explain the printer twice", "friendly colleagues save me a chair"),
        "meeting": ("the first meeting ends early", "every meeting starts with a joke"),
        "keys": ("the new keys open the wrong door", "a ring of keys hangs by the entrance"),
        "lift": ("the lift stops on every floor", "a mirror in the lift calms my nerves"),
    },
    "an old house": {
        "stairs": ("the stairs creak in the same places", "narrow stairs lead to a locked room"),
        "attic": ("the attic is full of forgotten letters", "a swallow nests in the attic"),
        "door": ("the front door sticks in summer", "a green door hides behind the ivy"),
        "clock": ("the clock is always an hour slow", "a tall clock strikes thirteen"),
        "roof": ("the roof sings when it rains", "moss grows thick on the roof"),
        "piano": ("the piano is missing two keys", "somebody plays the piano at dusk"),
    },
}

FORMS: dict[str, tuple[str, ...]] = {
    "sentence": (
        "{C}.", "In the end, {c}.", "Somehow {c}, and nobody minds.", "Early in the day, {c}.", "As always, {c}.",
        "On days like this, {c}.", "From the first minute, {c}.", "{C}, just like every year.", "For a moment, {c}.",
        "If you look closely, {c}.", "Once more {c}, to everyone's delight.", "All at once, {c}.",
    ),
    "caption": (
        "{C}.", "Caught in passing: {c}.", "A moment to keep: {c}.", "No filter needed when {c}.",
        "Here {c}, and time stands still.", "The best view of the day: {c}.", "Seen today: {c}.",
        "Look closely and you will see that {c}.", "Just before dusk, {c}.", "Proof that {c}.", "Today's picture: {c}.",
    ),
    "note": (
        "You should see how {c}.", "Guess what, {c}.", "A quick note to say that {c}.", "Just so you know, {c}.",
        "Dear friend, {c}.", "Thinking of you while {c}.", "I had to tell you that {c}.", "Picture this: {c}.",
        "Here is the news: {c}.", "Before I forget, {c}.", "Hello from here, where {c}.",
    ),
    "reply": (
        "Lovely, because {c}.", "Honestly, {c}.", "Well, {c}.", "You won't believe it, but {c}.",
        "It goes well, and {c}.", "Better than I hoped, since {c}.", "Let me put it like this: {c}.",
        "Thanks for asking, {c}.", "All I can say is that {c}.", "Much the same as ever: {c}.", "To be fair, {c}.",
    ),
    "diary entry": (
        "Today {c}.", "Tonight I remember how {c}.", "What stays with me is that {c}.", "I write this while {c}.",
        "It is a small thing, but {c}.", "I smile because {c}.", "I want to remember that {c}.", "Once again {c}.",
        "Note to myself: {c}.", "The best part comes when {c}.", "I sit still and {c}.",
    ),
    "postcard": (
        "Greetings from a place where {c}.", "Hello from here, where {c}.", "You would love it, because {c}.",
        "Every day {c}.", "It is just as you said: {c}.", "All is well, and {c}.", "We laugh a lot, for {c}.",
        "The first thing to tell you is that {c}.", "Imagine, {c}.", "I have no time, since {c}.", "As I write, {c}.",
    ),
}  # fmt: skip

ASKED = {
    "sentence": "one about", "caption": "a photo caption about", "note": "a note to a friend about",
    "reply": "a reply to a friend who asks about", "diary entry": "a diary entry about", "postcard": "a postcard about",
}  # fmt: skip

FOLLOW = (
    "Meanwhile, {c}.", "A little later, {c}.", "Not far away, {c}.", "Then {c}.", "At the same time, {c}.",
    "Now and then, {c}.", "Best of all, {c}.", "And still, {c}.", "Even so, {c}.", "{C}.", "Soon {c}.",
)  # fmt: skip
JOINED = ("{a}, and {b}", "{a} while {b}", "{a} and {b}", "{a} as {b}", "{a}, while {b}")
