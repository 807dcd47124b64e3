"""The queues of the synthetic support tickets and the wording that is each queue's own.

It is kept apart from the code that draws from it so that the wording can be read and changed as data. Nothing here was
taken from real customers: the shop, its partners and its product names are invented.

Two marks are used in the texts: `[a|b|c]` stands for one of the alternatives (an empty one is allowed), and `{day}` is
a slot that the generator fills in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["GRAMMAR", "NewCue", "QueueGrammar"]

CueKind = Literal["system", "partner"]


@dataclass(frozen=True)
class NewCue:
    """A term that only unlabelled and test rows use, and whose queue the term alone does not give away."""

    term: str
    kind: CueKind


@dataclass(frozen=True)
class QueueGrammar:
    """What one queue's tickets are made of.

    Attributes:
        name: The queue, which is also the label.
        share: Percentage of the rows. Whole numbers, because sums of fractions differ between Python versions.
        topics: Noun phrases by which a ticket of another queue mentions this one in passing.
        known: Clauses that state the matter plainly; labelled rows use these and no others.
        weak: Vague clauses that lean towards the queue; labelled rows never use them.
        new: The terms that have to be learned from the unlabelled rows. Two a queue: with more, each is seen too
            rarely for a model of 22M parameters to learn it.
    """

    name: str
    share: int
    topics: tuple[str, ...]
    known: tuple[str, ...]
    weak: tuple[str, ...]
    new: tuple[NewCue, ...]


def _cues(**terms: str) -> tuple[NewCue, ...]:
    kinds: tuple[CueKind, ...] = ("system", "partner")
    return tuple(NewCue(term, kind) for kind in kinds for term in terms.get(kind, "").split(", ") if term)


GRAMMAR: tuple[QueueGrammar, ...] = (
    QueueGrammar(
        name="billing",
        share=20,
        topics=("the invoice", "that old bill", "the card payment"),
        known=(
            "I was [charged|billed] [twice|two times] for [one|the same|a single] [order|purchase]",
            "the invoice [shows|has|states] the wrong [amount|total|sum]",
            "my credit card was [charged|debited] [too much|without reason|for nothing]",
            "I need [an invoice|a proper bill] with our [VAT number|company name] on it",
            "my [card|] payment [was declined|did not go through|failed] although [the card is fine|there is money]",
            "the [bill|invoice] lists [a fee|an extra charge|costs] I never agreed to",
            "your [bill|invoice] does not match the price [I paid|on the receipt|on the page]",
            "the [discount|voucher] is missing from [the bill|my invoice]",
        ),
        weak=(
            "the sum is not what I expected to pay",
            "there is more money gone than there should be",
            "our accountant is asking questions [about the amounts|]",
            "the figures do not add up [at all|]",
            "my bank [noticed it|sent me a note] too",
            "[a few euros|some dollars] too much [were taken|are gone]",
        ),
        new=_cues(system="Quorvex, Brindlewax"),
    ),
    QueueGrammar(
        name="shipping",
        share=16,
        topics=("the late parcel", "the courier", "the delivery"),
        known=(
            "my [parcel|package|shipment] has not arrived [yet|so far|]",
            "the tracking [page|number] [shows nothing|has not changed|is frozen] for [days|a week]",
            "the courier left the [parcel|package|box] at the wrong [address|door|house]",
            "the delivery [is late|date keeps moving|was put off again]",
            "please [change|correct] the delivery address [of my order|for this shipment]",
            "the [parcel|shipment] is marked as delivered but [nothing came|I have not seen it]",
            "the [courier|driver] never rang and took the [parcel|package] away again",
        ),
        weak=(
            "we stayed at home [all day|the whole morning] waiting for it to come",
            "I waited at the window for the van until dark",
            "the neighbours did not take it in either",
            "it seems to be somewhere on the road",
            "the van drove past our street",
            "it has been weeks and nothing has come to the door",
        ),
        new=_cues(system="Tavolin, Skerrow"),
    ),
    QueueGrammar(
        name="returns",
        share=13,
        topics=("a return", "the refund", "sending things back"),
        known=(
            "I want to [return|send back] [the item|what I bought|the lamp]",
            "my refund has not [come|been paid|shown up] [yet|]",
            "I need a return label [for this item|to send it back|by mail]",
            "the wrong [size|colour|model] came and I want to exchange it",
            "the return [was refused and I want to know why|window closed too early]",
            "I sent [it|the item|everything] back and am still waiting for [the|my] refund",
            "please exchange [the item|this one|it] for a [smaller|bigger|darker] one",
        ),
        weak=(
            "it [simply|] was not what we wanted, so it should go back",
            "I changed my mind about [it|keeping it]",
            "it does not fit us, so it should go",
            "my wife likes it less than the other one",
            "it is packed up again [on the table|and ready to go back]",
            "I would rather have my money again",
        ),
        new=_cues(system="Pellaquin, Dovemere"),
    ),
    QueueGrammar(
        name="account access",
        share=11,
        topics=("the password", "my login", "the locked account"),
        known=(
            "I cannot [log in|sign in] [to my account|] [any more|since {day}|]",
            "the password reset [mail|link] [never comes|does not work|has expired]",
            "my account [is locked|got blocked] [after three tries|without warning|]",
            "I [lost|changed] my phone and cannot get the login code",
            "the login page says my [password|user name] is wrong",
            "I no longer have the email address of my account and cannot [sign in|log in]",
        ),
        weak=(
            "it keeps asking me who I am",
            "I am shut out and cannot get in",
            "I typed it [five|ten] times, with capitals and without",
            "it no longer recognises me [as a user|]",
            "my old mailbox is gone",
            "only my husband still gets in with his",
        ),
        new=_cues(system="Yarrowgate, Fimbrel"),
    ),
    QueueGrammar(
        name="app errors",
        share=10,
        topics=("the app", "the crash", "the app update"),
        known=(
            "the app [crashes|closes] [when I open it|on start|all the time]",
            "since the [last|newest] update the app [freezes|is very slow|hangs]",
            "the app shows [a blank screen|an error message|an empty list]",
            "[a button|the menu] in the app does nothing when I tap it",
            "the app [quits|crashes|stops] with an error when I [search|scroll]",
            "the new version of the app drains the battery [of my phone|]",
        ),
        weak=(
            "everything [hangs|freezes] on the screen and then it is gone",
            "I see only a white rectangle [on my phone|]",
            "tapping on it has no effect",
            "I installed it anew [on my phone|], with no luck",
            "it worked before the night of the new version",
            "it spins and spins and never loads",
        ),
        new=_cues(system="Wexmoor, Jarnikle"),
    ),
    QueueGrammar(
        name="device setup",
        share=8,
        topics=("the installation", "pairing the hub", "the wifi setup"),
        known=(
            "I cannot pair the [speaker|hub|camera] with my [phone|wifi]",
            "the setup [stops|hangs] at step [two|three|four]",
            "how do I [connect|install] the new [thermostat|camera] [at home|]?",
            "the [hub|speaker] does not find my wifi network during setup",
            "which [cable|plug] do I need to install the [camera|hub]?",
            "the manual does not explain how to [set up|mount] the [hub|camera|thermostat]",
        ),
        weak=(
            "I just unpacked it and do not know where to begin",
            "the little light on the box only blinks",
            "the two of them do not [see each other|connect]",
            "I am not good with wires [and sockets|]",
            "we are at the very first step of putting it up",
            "the leaflet in the box is no help",
        ),
        new=_cues(system="Orlamund, Kettrick"),
    ),
    QueueGrammar(
        name="subscriptions",
        share=7,
        topics=("the membership", "my plan", "the renewal"),
        known=(
            "I want to [cancel|end] my [subscription|membership]",
            "my [subscription|membership] [renewed|was renewed] [by itself|against my wish|for a year]",
            "please [upgrade|downgrade|move] my plan to the [family|basic|yearly] one",
            "can I pause my [membership|subscription] for a [month|while]?",
            "the free trial turned into a paid [plan|subscription|membership]",
        ),
        weak=(
            "we hardly use [it|the service] these days, so it can end",
            "I would like to stop it at the end of the [year|term]",
            "every month the same thing again",
            "the cheaper tier would do for us",
            "I never asked to go on with it for another year",
        ),
        new=_cues(system="Miravolt, Thessaly Loop"),
    ),
    QueueGrammar(
        name="warranty repair",
        share=5,
        topics=("the repair", "the warranty", "the broken part"),
        known=(
            "the [device|speaker] broke and is still under warranty",
            "I want to have my [broken|cracked] [device|screen] repaired",
            "the repair [takes|has taken] [far too long|six weeks now]",
            "is a [cracked|broken] [screen|case] covered by the warranty?",
            "after the repair the same part [broke|failed] again",
        ),
        weak=(
            "it fell silent after barely a year",
            "something is loose and rattles inside",
            "it smells of burnt plastic",
            "a technician should have a look at [it|the damage]",
            "one corner came loose and cracked",
        ),
        new=_cues(system="Noctivane", partner="Zellinger"),
    ),
    QueueGrammar(
        name="data privacy",
        share=5,
        topics=("my personal data", "the privacy notice", "the cookies"),
        known=(
            "please [delete|erase] all my personal data",
            "I want a copy of the personal data you [store|keep|hold] about me",
            "I do not consent to [sharing my data|tracking|the cookies] [any more|]",
            "who has access to my personal [data|details] under your privacy policy?",
            "[remove|take] my [name|details] off your marketing list, as privacy law demands",
        ),
        weak=(
            "I would like to be forgotten [by your systems|]",
            "how do you know so much about me?",
            "I never said yes to [that|being watched]",
            "my lawyer wants to see what is on file [about me|]",
            "strangers should not be able to read it",
        ),
        new=_cues(system="Eskavar", partner="Pontefray"),
    ),
    QueueGrammar(
        name="store pickup",
        share=5,
        topics=("the pickup", "the store visit", "the collection point"),
        known=(
            "my order is not ready for pickup at the store",
            "the store [could not find|gave away] my pickup order",
            "can [someone else|my son|a friend] collect my order at the store?",
            "I never got the pickup [code|message] for the store",
            "the store was closed when I came to [collect|pick up] my order",
        ),
        weak=(
            "I stood at the counter in vain",
            "the man at the till sent me away",
            "we drove into town [to fetch it|] for nothing",
            "I can come by the shop after work",
            "the line at the counter went out to the car park",
        ),
        new=_cues(system="Vintersby", partner="Almondine"),
    ),
)
