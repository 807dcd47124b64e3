"""Phrases of the synthetic support tickets that give no queue away: how terms are mentioned, greetings, requests.

Every queue draws from the same phrases, so that only its cues tell it from the others. Off-topic letters are here too.
The marks are those of `semievol.demo.ticket_grammar`; the slots are `{cue}`, `{topic}`, `{day}`, `{name}`, `{number}`.
"""

__all__ = [
    "ASIDES",
    "CONTEXTS",
    "DAYS",
    "GREETINGS",
    "NAMES",
    "NEW_PATTERNS",
    "OFF_TOPIC",
    "OFF_TOPIC_EXTRAS",
    "REQUESTS",
    "SIGN_OFFS",
]

NEW_PATTERNS: dict[str, tuple[str, ...]] = {
    "any": (
        "[this|it] is about {cue} [again|once more|]",
        "the [letter|mail|message] I got [mentions|refers to|points to] {cue}",
        "your colleague [called it|wrote it down as|put it under] {cue}",
        "I was told to [ask for|mention] {cue}",
        "nobody [here|on the phone|so far] could explain {cue} [to me|]",
        "[the trouble|all of it|everything] started with {cue} [on {day}|last week|]",
        "I keep [coming across|running into|hearing of] {cue}",
        "the answer I got [was only|just said] {cue}",
        "there is [something wrong|a problem|some trouble] with {cue}",
    ),
    "system": (
        "{cue} has [done nothing|looked wrong|been stuck] since {day}",
        "[I|we] tried {cue} [twice|again|on {day}] and it is no better",
        "{cue} [failed|gave up|did not help] on {day}",
    ),
    "partner": (
        "{cue} [says|insists|claims] it is [up to you|on your side]",
        "somebody from {cue} [rang|wrote to|contacted] me on {day}",
        "I already [spoke|talked] with {cue} [and got nowhere|on {day}]",
    ),
}

ASIDES: tuple[str, ...] = (
    "{topic} is [sorted|settled] by now",
    "at first I thought it was about {topic}, which was wrong",
    "I wrote before about {topic}, that one is done",
    "this has nothing to do with {topic}",
    "{topic} went fine last time",
    "your chat sent me to the people for {topic}, which is not what I need",
)

GREETINGS: tuple[str, ...] = (
    "Hello",
    "Hi",
    "Hi there",
    "Good morning",
    "Good evening",
    "Dear team",
    "Hey",
    "Dear support",
    "Hello again",
    "To whom it may concern",
)

CONTEXTS: tuple[str, ...] = (
    "my [customer|reference] number is {number}",
    "this is about order {number}",
    "I have been a customer for [three|five|ten] years",
    "I [wrote|called] on {day} [already|] and heard nothing",
    "this is the [second|third] time [now|]",
    "it began on {day}",
    "I am [not amused|getting tired of this|really annoyed]",
    "sorry if this is the wrong form",
    "I am [travelling|away] until {day}",
    "my [brother|mother|flatmate] has the same trouble",
    "maybe I [did something wrong|missed something]",
)

REQUESTS: tuple[str, ...] = (
    "please [help|advise]",
    "can [you|someone] [help|have a look at it|look into this]?",
    "what [should|can] I do [now|next]?",
    "please [get back to me|answer] [by|before] {day}",
    "I [expect|would like] an answer [soon|this week|today]",
    "could you [fix|sort out] this [soon|for me|]?",
    "who [is in charge|can help] [here|]?",
    "any [idea|news|help] would be welcome",
    "let me know [what you need from me|how to go on]",
    "fix this [now|today]!",
)

SIGN_OFFS: tuple[str, ...] = (
    "Thanks, {name}",
    "Thank you",
    "Best regards, {name}",
    "Cheers, {name}",
    "Regards, {name}",
    "Many thanks, {name}",
    "{name}",
    "Yours, {name}",
    "thx",
)

DAYS: tuple[str, ...] = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

NAMES: tuple[str, ...] = (
    *("Dana", "Omar", "Priya", "Luis", "Ingrid", "Tom", "Mei", "Hanna", "Jonas", "Aisha"),
    *("Marta", "Kofi", "Elena", "Ravi", "Nils", "Chloe", "Yusuf", "Greta", "Paolo", "Sofia"),
    *("Ben", "Noor", "Oskar", "Lea", "Ivan", "Tess", "Hugo", "Amina", "Felix", "Ruth"),
)

OFF_TOPIC: tuple[str, ...] = (
    "we can bring your [website|shop] to the first page of [every|any] search engine",
    "I am [looking for|applying for] a [summer job|part-time job|traineeship] [in your office|near the coast|]",
    "our [school|choir|football] club is looking for a sponsor [this year|for the autumn]",
    "I am writing [an article|my thesis] about [small shops|customer service|old radios]",
    "[does anybody know|do you know] a good recipe for [lentil soup|plum cake|pickled beans]?",
    "I think I have the wrong number, I wanted the [dentist|town hall|swimming pool]",
    "the weather here is [dreadful|lovely], how is it [over there|at your place]?",
    "[thank you|well done], your [window display|advert on the radio|jingle] made [me|us] smile",
    "I have a [poem|story] about [my cat|the sea|autumn] that I would like you to print",
    "would your [manager|director] speak at our [conference|evening class] on {day}?",
    "I found a [bunch of keys|grey scarf|child's bicycle] in front of your building on {day}",
    "we sell [pallets|paper cups|office plants] at [half|the best] price",
    "our [survey|study] on [work|sleep] takes only [five|ten] minutes",
    "who wrote the music [in|of] your [television|cinema] advert?",
)

OFF_TOPIC_EXTRAS: tuple[str, ...] = (
    "I hope you do not mind me asking",
    "we have done this for [three|twelve|twenty] years",
    "my [uncle|teacher|neighbour] said you would know",
    "it would mean a lot to [us|me]",
    "no hurry at all",
    "you can reach me on {day}",
    "I have asked [everybody|three others] already",
    "reply to get our [brochure|price list|programme]",
    "have a [nice|good] weekend",
)
