import pytest
import torch

from kernels.backend import tl, triton
from kernels.philox import philox

# Random123's published known answers of philox4x32-10: counter, key (low word first), words.
KNOWN_ANSWERS = {
    "zeros": ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    "ones": ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    "digits_of_pi": (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
}


def words(key, counter):
    return tuple(int(word) for word in philox(key, tuple(torch.tensor(c) for c in counter)))


def as_int64(number):
    """The same 64 bits, as the signed number that an int64 tensor can hold."""
    return number - 2**64 if number >= 2**63 else number


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS.values(), ids=KNOWN_ANSWERS.keys())
def test_published_known_answers(counter, key, expected):
    low, high = key
    assert words(low | high << 32, counter) == expected


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS.values(), ids=KNOWN_ANSWERS.keys())
def test_tensor_key_gives_the_words_of_the_int_key(counter, key, expected):
    low, high = key
    assert words(torch.tensor(as_int64(low | high << 32)), counter) == expected


@triton.jit
def philox_kernel(key, counters, words, BLOCK: tl.constexpr):
    """Words (4, BLOCK) int64 of counters (4, BLOCK) int64."""
    lane = tl.arange(0, BLOCK)
    c0 = tl.load(counters + lane).to(tl.uint32)
    c1 = tl.load(counters + BLOCK + lane).to(tl.uint32)
    c2 = tl.load(counters + 2 * BLOCK + lane).to(tl.uint32)
    c3 = tl.load(counters + 3 * BLOCK + lane).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(tl.load(key), c0, c1, c2, c3)
    tl.store(words + lane, w0.to(tl.int64))
    tl.store(words + BLOCK + lane, w1.to(tl.int64))
    tl.store(words + 2 * BLOCK + lane, w2.to(tl.int64))
    tl.store(words + 3 * BLOCK + lane, w3.to(tl.int64))


@pytest.mark.parametrize("backend", ["triton"])
def test_triton_gives_the_published_words_and_ours(backend, device):
    generator = torch.Generator().manual_seed(0)
    counters = torch.randint(0, 2**32, (4, 32), generator=generator)
    keys = torch.randint(-(2**63), 2**63 - 1, (2,), generator=generator)
    cases = [(key, counters, torch.stack(philox(key, tuple(counters)))) for key in keys]
    for counter, (low, high), words in KNOWN_ANSWERS.values():
        published = tuple(torch.tensor(numbers)[:, None].expand(4, 32).contiguous() for numbers in (counter, words))
        cases.append((torch.tensor(as_int64(low | high << 32)), *published))
    for key, counter, expected in cases:
        words = torch.full((4, 32), -1, device=device)
        philox_kernel[(1,)](key.to(device), counter.to(device), words, BLOCK=32)
        assert torch.equal(words.cpu(), expected)


def test_counters_broadcast_to_the_words_of_single_counters():
    rows, columns = torch.arange(3)[:, None], torch.arange(4)
    table = philox(7, (columns, rows, torch.tensor(5), torch.tensor(0)))
    assert all(word.shape == (3, 4) and word.dtype == torch.int64 for word in table)
    for row in range(3):
        for column in range(4):
            assert tuple(int(word[row, column]) for word in table) == words(7, (column, row, 5, 0))


def test_keys_broadcast_with_the_counter():
    keys = torch.tensor([1, 2])[:, None]
    counter = (torch.arange(3), *(torch.zeros(3, dtype=torch.int64) for _ in range(3)))
    both = torch.stack(philox(keys, counter))
    each = torch.stack([torch.stack(philox(key, counter)) for key in (1, 2)], dim=1)
    assert torch.equal(both, each)


def test_words_fit_in_32_bits_and_use_all_of_them():
    drawn = torch.stack(philox(0, tuple(torch.arange(4096) + i for i in range(4))))
    assert drawn.min() >= 0
    assert drawn.max() < 2**32
    ones = torch.stack([(drawn >> bit & 1).double().mean() for bit in range(32)])
    # Mean of n = 4 x 4096 fair bits: standard deviation 0.5 / sqrt(n) = 0.0039; 5 of them miss by chance once in 10^5.
    assert (ones - 0.5).abs().max() < 5 * 0.5 / drawn.numel() ** 0.5
