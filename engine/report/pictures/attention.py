"""Which cells of an image are read, and where the attention of a word goes."""

from engine.report.pictures.drawing import is_landscape, picture_of, with_cells, with_heat
from engine.report.pictures.held_out import HeldOut, spread_evenly
from engine.report.pictures.reader import Reader
from engine.report.pictures.words import Words
from engine.report.sections import Card, Picture, Section

CARDS = 6


def attention_section(reader: Reader, held_out: HeldOut) -> Section:
    """Some sentences, each with its rarest word."""
    sentences = held_out.captions or held_out.questions
    words = Words(reader.model, (example.sentence for example in sentences))
    chosen = spread_evenly([example for example in sentences if words.of(example.sentence)], CARDS, seed=1)
    cards: list[Card] = []
    for example, reading in reader.read(chosen, attention=True):
        assert reading.attention is not None
        word = words.rarest_first(example.sentence)[0]
        shares = reading.attention[word.place]
        png = picture_of([with_cells(reading), with_heat(reading, shares)], below=is_landscape(reading))
        alt = f"The cells of the image {example.img_id} that were read, and the attention that {word.piece} pays them"
        rows, columns = reading.grid
        lines = [
            f"the attention of “{word.piece}”",
            f"{shares.sum():.1%} goes to cells, {shares.max():.1%} to the one that gets most",
            f"{len(reading.cells):,} of {rows} x {columns} cells were read",
        ]
        cards.append(Card(Picture(f"{reader.slug}_attention_{example.number}", png, alt), example.sentence, lines))
    title = "Where it looks"
    if not cards:
        return Section(title, [f"No sentence of {held_out.name} has a word that is one piece of the vocabulary."])
    text = (
        "The first image of a pair shows which cells the model read: all but the dark ones. The second shows where a "
        "word looks: the more orange a cell is, the more of the word's attention it gets in the last layer, as the "
        "mean over its heads. It is the word that the fewest of these sentences have. Attention hints at what a model "
        "heeds; it doesn't prove why it answers as it does (Jain and Wallace, 2019)."
    )
    return Section(title, [text, cards])
