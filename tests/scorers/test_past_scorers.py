"""Scorers of the past: plain references, padding, truncation, users without a past, and what is learned of order."""

from dataclasses import replace

import pytest
import torch

from llmrs_lightning.errors import ConfigError
from llmrs_lightning.features import PastSide, Side, SideSizes
from llmrs_lightning.scorers import (
    AttentionScorer,
    CaserScorer,
    DINScorer,
    GRUScorer,
    MFScorer,
    NRMSScorer,
    SASRecScorer,
)
from llmrs_lightning.scorers.events import EventOptions, EventVectors

USERS, ITEMS = SideSizes(num_ids=5, features=3, text=4), SideSizes(num_ids=9, features=5, text=4)
LENGTHS = [0, 1, 3, 6, 2]
SMALL = EventOptions(size=6, last=4)
SCORERS = {
    "gru": lambda: GRUScorer(SMALL),
    "lstm": lambda: GRUScorer(SMALL, cell="lstm", layers=2),
    "caser": lambda: CaserScorer(SMALL),
    "sasrec": lambda: SASRecScorer(SMALL, heads=2),
    "nrms": lambda: NRMSScorer(SMALL, heads=3),
    "attention": lambda: AttentionScorer(SMALL),
    "candidate": lambda: AttentionScorer(SMALL, query="candidate"),
    "din": lambda: DINScorer(SMALL),
}


def side(sizes, rows, seed):
    generator = torch.Generator().manual_seed(seed)
    parts = (torch.randn(rows, width, generator=generator) for width in (sizes.features, sizes.text))
    return Side(torch.arange(rows) % (sizes.num_ids + 1), *parts)


def past(lengths, width=None, seed=3):
    """Events oldest first; a user of length n has the latest n of six, whatever the width."""
    generator, rows = torch.Generator().manual_seed(seed), len(lengths)
    items = side(ITEMS, 8, seed)
    place = torch.randint(8, (rows, 6), generator=generator)
    ratings = torch.randint(1, 6, (rows, 6), generator=generator).float()
    ratings[ratings == 3] = torch.nan
    ages = torch.randint(1, 10**8, (rows, 6), generator=generator).sort(1, descending=True).values
    mask = torch.arange(width or 6) < torch.tensor(lengths).unsqueeze(1)
    parts = []
    for values in (place, ratings, ages):
        padded = torch.zeros(rows, width or 6, dtype=values.dtype)
        for row, length in enumerate(lengths):
            padded[row, :length] = values[row, 6 - length :]
        parts.append(padded)
    return PastSide(items, *parts, mask)


def user_side(lengths=LENGTHS, width=None):
    return replace(side(USERS, len(lengths), 1), past=past(lengths, width))


def made(factory, num_outputs=1, std=0.5):
    torch.manual_seed(0)
    scorer = factory()
    scorer.build(USERS, ITEMS, num_outputs)
    for parameter in scorer.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return scorer.eval()


@pytest.fixture(params=SCORERS)
def scorer(request):
    return made(SCORERS[request.param])


def test_padding_never_matters(scorer):
    items = side(ITEMS, 7, 2)
    wide = user_side(width=11)
    junk = torch.where(wide.past.mask, wide.past.ratings, 5.0)
    wide = replace(wide, past=replace(wide.past, ratings=junk, ages=wide.past.ages + 77 * ~wide.past.mask))
    torch.testing.assert_close(scorer.grid(wide, items), scorer.grid(user_side(), items), rtol=1e-5, atol=1e-5)


def test_only_the_latest_events_are_read(scorer):
    items = side(ITEMS, 7, 2)
    cut = user_side([min(length, 4) for length in LENGTHS])
    torch.testing.assert_close(scorer.grid(user_side(), items), scorer.grid(cut, items), rtol=1e-5, atol=1e-5)
    shorter = user_side([min(length, 2) for length in LENGTHS])
    assert not torch.allclose(scorer.grid(user_side(), items)[3], scorer.grid(shorter, items)[3], atol=1e-3)


def test_a_user_without_a_past_gets_what_is_learned_of_having_none(scorer):
    items = side(ITEMS, 7, 2)
    scores = scorer.grid(user_side([0, 0, 0]), items)
    assert scores.isfinite().all()
    assert scores.std(1).min() > 0
    scorer(user_side([0, 0, 0]), items[:3]).sum().backward()
    assert scorer.events.no_past.grad.any()
    assert all(p.grad is None or p.grad.isfinite().all() for p in scorer.parameters())
    scorer.zero_grad()
    scorer(user_side([1, 3, 6]), items[:3]).sum().backward()
    assert not scorer.events.no_past.grad.any()


@pytest.mark.parametrize("what", ["place", "ratings", "ages"])
def test_each_part_of_an_event_counts_and_a_missing_rating_is_not_a_number(scorer, what):
    users, items = user_side(), side(ITEMS, 7, 2)
    before = getattr(users.past, what)
    others = {"place": (before + 1) % 8, "ratings": torch.where(before.isnan(), 4.0, torch.nan), "ages": before * 4096}
    changed = replace(users, past=replace(users.past, **{what: others[what]}))
    changes = (scorer.grid(changed, items) - scorer.grid(users, items)).abs().amax((1, 2))
    one_event_has_all_the_weight = what == "ages" and isinstance(scorer, AttentionScorer)
    assert changes[0] < 1e-6
    assert changes[2 if one_event_has_all_the_weight else 1 :].min() > 1e-4


def test_an_option_leaves_ratings_or_ages_out():
    scorer = made(lambda: GRUScorer(EventOptions(size=6, ratings=False, ages=False)))
    users, items = user_side(), side(ITEMS, 7, 2)
    changed = replace(users, past=replace(users.past, ratings=users.past.ratings + 1, ages=users.past.ages * 4096))
    assert torch.equal(scorer.grid(changed, items), scorer.grid(users, items))


def test_few_users_of_a_catalogue_are_read_like_many():
    events = EventVectors(ITEMS, SMALL, places=True).eval()
    users = user_side()
    many = events(users.past)
    few = events(users[2:3].past)
    torch.testing.assert_close(few.vectors, many.vectors[2:3])
    assert torch.equal(few.mask, many.mask[2:3])


def test_the_latest_event_is_at_place_0_whatever_the_length():
    events = EventVectors(ITEMS, SMALL, places=True)(user_side().past)
    assert events.place.tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [2, 1, 0, 0], [3, 2, 1, 0], [1, 0, 0, 0]]
    assert events.mask.sum(1).tolist() == [1, 1, 3, 4, 2]


def test_items_are_shared_or_apart():
    shared, apart = (EventVectors(ITEMS, replace(SMALL, share_items=share, dropout=0), True) for share in (True, False))
    items = side(ITEMS, 4, 2)
    assert torch.equal(shared.candidate(items), shared.items(items))
    assert not torch.allclose(apart.candidate(items), apart.items(items))


# ---- references


def test_din_sums_events_weighed_by_a_perceptron():
    scorer, users, items = made(lambda: DINScorer(SMALL, 3, [5]), 2), user_side(), side(ITEMS, 5, 2)
    events = scorer.events(users.past)
    for row in range(5):
        v = scorer.events.candidate(items[row : row + 1])[0]
        interest = torch.zeros(6)
        for e in events.vectors[row][events.mask[row]]:
            hidden = scorer.event_part(e) + scorer.item_part(v) + scorer.product_part @ (e * v)
            interest = interest + scorer.weight(hidden.relu()) * e
        first = scorer.deep.first(torch.cat([users.features[row], items.features[row], v]))
        expected = scorer.deep.rest(first + scorer.interest_part(interest))
        score = scorer(users[row : row + 1], items[row : row + 1])[0]
        torch.testing.assert_close(score, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("query", ["learned", "candidate"])
def test_attention_averages_likenesses(query):
    scorer, users, items = made(lambda: AttentionScorer(SMALL, query)), user_side(), side(ITEMS, 5, 2)
    events = scorer.events(users.past)
    cosine = torch.nn.functional.cosine_similarity
    for row in range(5):
        v, mask = scorer.events.candidate(items[row : row + 1])[0], events.mask[row]
        keys, content = events.vectors[row][mask], events.content[row][mask]
        logits = torch.stack([scorer.attention.query(scorer.attention.inner(key).tanh())[0] for key in keys])
        average = (logits.softmax(0).unsqueeze(1) * content).sum(0)
        if query == "learned":
            similarity = cosine(average, v, 0)
        else:
            each = cosine(content, v.unsqueeze(0))
            similarity = ((logits + scorer.sharpness * each).softmax(0) * each).sum()
        own = scorer.similarity.item_ids(items.index[row]) + scorer.similarity.item_bias(v)
        bias = own + scorer.similarity.user_bias(average) + scorer.similarity.bias
        score = scorer(users[row : row + 1], items[row : row + 1])[0]
        torch.testing.assert_close(score, scorer.similarity.scale * similarity + bias, rtol=1e-4, atol=1e-5)


def test_before_it_learns_attention_is_the_mean_likeness_of_texts():
    torch.manual_seed(0)
    scorer = AttentionScorer(EventOptions("text", size=512)).eval()
    scorer.build(USERS, SideSizes(9, 5, 64), 1)
    texts = torch.randn(3, 64)
    texts[1] = texts[0] + 0.1 * texts[1]
    items = Side(torch.arange(3), torch.zeros(3, 5), texts)
    seen = PastSide(items[:1], torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1), torch.ones(1, 1).long(), None)
    users = replace(side(USERS, 1, 1), past=replace(seen, mask=torch.ones(1, 1, dtype=torch.bool)))
    like, other = scorer.grid(users, items[1:])[0, :, 0].tolist()
    assert like > 4
    assert abs(other) < 2


def test_a_later_event_never_changes_an_earlier_state_of_sasrec():
    scorer, users = made(SCORERS["sasrec"]), user_side([4] * 5)
    states = scorer.states(scorer.events(users.past))
    for column in range(4):
        place = users.past.place.clone()
        place[:, column] = (place[:, column] + 1) % 8
        changed = scorer.states(scorer.events(replace(users.past, place=place)))
        torch.testing.assert_close(changed[:, :column], states[:, :column])
        assert (changed[:, column:] - states[:, column:]).abs().amax((0, 2)).min() > 1e-3


def test_caser_slides_windows_over_the_latest_events():
    scorer, users = made(lambda: CaserScorer(SMALL, [1, 2, 4], filters=3, vertical_filters=2)), user_side()
    events = scorer.events(users.past)
    for row in range(5):
        image = torch.zeros(4, 6)
        for place, e in enumerate(reversed(events.vectors[row][events.mask[row]])):
            image[place] = e
        found = []
        for height, conv in zip([1, 2, 4], scorer.horizontal, strict=True):
            for weight, bias in zip(conv.weight, conv.bias, strict=True):
                answers = [(image[i : i + height].T * weight).sum() + bias for i in range(4 - height + 1)]
                found.append(max(0, *answers))
        found += [(image * weights.unsqueeze(1)).sum(0)[d] for weights in scorer.vertical.weight for d in range(6)]
        # vertical answers stand column by column
        vertical = torch.stack(found[9:]).view(2, 6).T.flatten()
        state = scorer.layer(torch.cat([torch.stack([torch.as_tensor(f) for f in found[:9]]), vertical])).relu()
        expected = state + scorer.user_ids(users.index[row])
        torch.testing.assert_close(scorer.state(users, events)[row], expected, rtol=1e-4, atol=1e-5)


# ---- learning

NUM = 12


def sequences(rows, seed):
    """Random pasts of 2 to 5 of twelve items; what comes next is decided by the latest."""
    generator = torch.Generator().manual_seed(seed)
    place = torch.randint(NUM, (rows, 5), generator=generator)
    lengths = torch.randint(2, 6, (rows, 1), generator=generator)
    mask = torch.arange(5) < lengths
    items = Side(torch.arange(NUM) + 1, torch.zeros(NUM, 0))
    following = torch.randperm(NUM, generator=torch.Generator().manual_seed(0))
    nothing = torch.full((rows, 5), torch.nan)
    seen = PastSide(items, place * mask, nothing, mask.long() * 60, mask)
    users = Side(torch.zeros(rows, dtype=torch.int64), torch.zeros(rows, 0), past=seen)
    return users, items, following[place.gather(1, lengths - 1).squeeze(1)]


def accuracy(scorer, steps=250):
    torch.manual_seed(0)
    scorer.build(SideSizes(1, 0, 0), SideSizes(NUM, 0, 0), 1)
    optimizer = torch.optim.Adam(scorer.parameters(), lr=1e-2)
    for step in range(steps):
        users, items, target = sequences(64, step + 10)
        loss = torch.nn.functional.cross_entropy(scorer.grid(users, items)[..., 0], target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    users, items, target = sequences(500, 1)
    return (scorer.eval().grid(users, items)[..., 0].argmax(1) == target).float().mean().item()


IDS = EventOptions("id", size=16, last=5, share_items=False, dropout=0.0)


@pytest.mark.parametrize(
    "factory",
    [
        pytest.param(lambda: GRUScorer(IDS), id="gru"),
        pytest.param(lambda: CaserScorer(IDS), id="caser"),
        pytest.param(lambda: SASRecScorer(IDS, layers=1), id="sasrec"),
        pytest.param(lambda: NRMSScorer(IDS), id="nrms"),
        pytest.param(lambda: AttentionScorer(IDS), id="attention"),
        pytest.param(lambda: AttentionScorer(IDS, query="candidate"), id="candidate"),
        pytest.param(lambda: DINScorer(IDS, hidden_sizes=[32]), id="din"),
    ],
)
def test_what_comes_next_is_learned_from_the_latest_event(factory):
    assert accuracy(factory()) > 0.6


def test_a_scorer_that_reads_no_past_cannot_know_what_comes_next():
    assert accuracy(MFScorer(16)) < 0.2


# ---- refusals


def test_text_and_features_must_be_there():
    for items, words in (("both", "text vectors"), ("text", "text vectors"), ("features", "features")):
        with pytest.raises(ConfigError, match=rf"{words}[\s\S]*past\.items to id"):
            GRUScorer(EventOptions(items)).build(SideSizes(3, 0, 0), SideSizes(3, 0, 0), 1)
    GRUScorer(EventOptions("id")).build(SideSizes(3, 0, 0), SideSizes(3, 0, 0), 1)


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match=r"past[\s\S]*last 0"):
        EventOptions(last=0)
    with pytest.raises(ConfigError, match=r"heads[\s\S]*past\.size 6"):
        NRMSScorer(SMALL, heads=4).build(USERS, ITEMS, 1)
    with pytest.raises(ConfigError, match=r"heights[\s\S]*1 to past\.last, 4"):
        CaserScorer(SMALL, heights=[2, 5])
