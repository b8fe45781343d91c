"""The text that the provider writes itself, and how a text is cut into chunks."""

from __future__ import annotations

import hashlib
import unicodedata

_ZERO_WIDTH_JOINER = "\u200d"
_SKIN_TONES = range(0x1F3FB, 0x1F400)
_QUOTED = 80

# A paragraph is a list of sentences, a sentence a list of ways to say it.
_PARAGRAPHS: tuple[tuple[tuple[str, ...], ...], ...] = (
    (
        (
            "No model wrote this: it is the scripted provider's own text, and it arrives the way a model's would.",
            "This is the scripted provider speaking; no model was asked, but the stream is a real one.",
            "What you are reading is scripted, piece by piece, so that you can watch a stream without a model.",
        ),
        (
            "Think of it as a rehearsal: the words do not matter much, their order and their timing do.",
            "The words are only there to be carried; what counts is that each arrives once, and in its place.",
        ),
    ),
    (
        (
            "A stream is a promise made in small pieces. Each piece is worth little alone, and none may be lost.",
            "A river is never late; it is only ever somewhere along its way, and so is a stream of tokens.",
            "Long answers are read as they are written, so the first word should not wait for the last.",
        ),
        (
            "Whoever reads along wants three things: the next word soon, no word twice, and to know when it is over.",
            "A reader forgives a pause. A reader does not forgive a sentence that begins again in the middle.",
        ),
        (
            "Between the writer and the reader there are queues, sockets and buffers, and each can fail by itself.",
            "On the way from one end to the other there is a good deal of plumbing, and all of it can leak.",
        ),
    ),
    (
        (
            "A log helps: what has been written down in order can be read again from any place in it.",
            "So it pays to write things down first and to hand them on second, as any good librarian does.",
            "The old remedy is a ledger: append to it, never change it, and let everyone read from their own page.",
        ),
        (
            "A café in Kraków, a train to Zürich, a phone in São Paulo: connections drop, and the page comes back.",
            "Someone walks into a lift in Malmö, loses the network, and comes out in the middle of a naïve question.",
        ),
        (
            "When that happens the reader names the last line it saw and gets exactly what follows — no more, no less.",
            "The reader then says “I was here”, and the story goes on from there, as though nothing had happened.",
        ),
    ),
    (
        (
            "Not every text is plain ASCII, and a byte stream may be cut anywhere: in a word, or inside an “ö”.",
            "Letters come in many shapes, one byte or four, and a network does not care where it cuts them.",
        ),
        (
            "Hence a little of everything here: 漢字, ελληνικά, עברית, ½ and €, and a lighthouse keeper 👩‍🔧.",
            "To keep everyone honest, here are some guests: Ελλάδα, 日本語, Україна, ∑ and √, and a small flag 🏳️‍🌈.",
        ),
        (
            "If they reach you whole, the decoders along the way did their work.",
            "If you can read them, nothing was torn apart between there and here.",
            "Should one of them be a black diamond, something between us is broken.",
        ),
    ),
    (
        (
            "Things go wrong on purpose, too. Ask for a fault, and the stream is cut, stalls or turns to nonsense.",
            "You can also ask for trouble: a limit reached, a line cut in the middle, a silence that never ends.",
        ),
        (
            "An app that has met each of these once, in daylight, has little to fear from them at night.",
            "It is far better to meet them here, while you are watching, than in production while you are not.",
        ),
    ),
    (
        (
            "That is nearly all there is to say, and it has been said at whatever pace you chose.",
            "The rest is practice: change the rate, change the size of a chunk, and look at your page again.",
            "Now close the page, open it again, and see whether this sentence is still here.",
        ),
        (
            "Have a good day, and may your streams always end with a proper full stop. 🌊",
            "Thank you for reading to the end; there is exactly one, and this is it. 🚀",
            "And with that the stream is done, once and for all. ✨",
        ),
    ),
)


def written_text(prompt: str, choice: int = 0) -> str:
    """A few hundred words in paragraphs. The same prompt and choice always get the same text, others another."""
    dice = hashlib.shake_256(f"{choice}\0{prompt}".encode()).digest(sum(map(len, _PARAGRAPHS)))
    rolls = iter(dice)
    paragraphs = [
        " ".join(variants[next(rolls) % len(variants)] for variants in sentences) for sentences in _PARAGRAPHS
    ]
    quoted = " ".join(prompt.split())
    if len(quoted) > _QUOTED:
        quoted = quoted[: _QUOTED - 1] + "…"
    if quoted:
        paragraphs.insert(
            0, f"You wrote: “{quoted}”. Choice {choice + 1} follows." if choice else f"You wrote: “{quoted}”."
        )
    return "\n\n".join(paragraphs)


def split_text(text: str, size: int) -> list[str]:
    """Cuts a text into chunks of `size` characters, and more where a combining mark or a joined emoji would be torn."""
    if text.isascii():
        return [text[start : start + size] for start in range(0, len(text), size)]
    chunks = []
    start = 0
    while start < len(text):
        end = start + size
        while end < len(text) and _continues(text, end):
            end += 1
        chunks.append(text[start:end])
        start = end
    return chunks


def _continues(text: str, index: int) -> bool:
    char = text[index]
    return (
        char == _ZERO_WIDTH_JOINER
        or text[index - 1] == _ZERO_WIDTH_JOINER
        or ord(char) in _SKIN_TONES
        or unicodedata.category(char) in ("Mn", "Me")  # combining marks; variation selectors are among them
    )
