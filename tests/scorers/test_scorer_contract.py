"""What every scorer must do. A new scorer is found by itself, and needs a line in FACTORIES."""

import importlib
import inspect
import pkgutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

import llmrs_lightning.scorers as package
from llmrs_lightning.data.pairs import Pairs
from llmrs_lightning.data.side import SideTable
from llmrs_lightning.data.tokens import TokenStore
from llmrs_lightning.errors import ConfigError
from llmrs_lightning.features import PastSide, Side, SideSizes
from llmrs_lightning.scorers import (
    ALSScorer,
    AttentionScorer,
    BayesianMFScorer,
    BiasScorer,
    CaserScorer,
    CrossEncoderScorer,
    DCNScorer,
    DeepFMScorer,
    DINScorer,
    DNNScorer,
    EASEScorer,
    FittedScorer,
    FMScorer,
    GRUScorer,
    ItemKNNScorer,
    MFScorer,
    NRMSScorer,
    PopularityScorer,
    RandomScorer,
    SASRecScorer,
    Scorer,
    SemanticScorer,
    WideDeepScorer,
    base,
)
from llmrs_lightning.scorers.cross_encoder import join_pairs
from llmrs_lightning.scorers.events import EventOptions
from llmrs_lightning.scorers.fitted import Content

USERS = SideSizes(num_ids=6, features=7, text=4, fields=(4, 2, 1))
ITEMS = SideSizes(num_ids=9, features=5, text=4)

FACTORIES = {
    DNNScorer: {
        "default": lambda: DNNScorer(),
        "gelu": lambda: DNNScorer([16, 8, 4], dropout=0.0, activation="gelu"),
        "one layer": lambda: DNNScorer([5], activation="tanh"),
    },
    FMScorer: {
        "default": lambda: FMScorer(),
        "dropout": lambda: FMScorer(size=3, dropout=0.3),
    },
    DeepFMScorer: {
        "default": lambda: DeepFMScorer(size=4),
        "small": lambda: DeepFMScorer(3, [6], dropout=0.0, activation="gelu"),
    },
    WideDeepScorer: {
        "default": lambda: WideDeepScorer(),
        "no crosses": lambda: WideDeepScorer([6, 3], crosses=False),
    },
    DCNScorer: {
        "default": lambda: DCNScorer(size=4),
        "low rank": lambda: DCNScorer(size=3, layers=3, rank=2, hidden_sizes=[]),
        "mixture": lambda: DCNScorer(size=3, rank=2, experts=3, hidden_sizes=[5], activation="tanh"),
    },
    BiasScorer: {
        "default": lambda: BiasScorer(),
        "ratings": lambda: BiasScorer("rating"),
    },
    PopularityScorer: {"default": lambda: PopularityScorer()},
    RandomScorer: {"default": lambda: RandomScorer()},
    ItemKNNScorer: {
        "default": lambda: ItemKNNScorer(),
        "adjusted": lambda: ItemKNNScorer(2, similarity="adjusted", value="rating"),
        "text": lambda: ItemKNNScorer(3, by="text"),
    },
    EASEScorer: {
        "default": lambda: EASEScorer(1.0),
        "ratings": lambda: EASEScorer(1.0, "rating"),
    },
    ALSScorer: {"default": lambda: ALSScorer(factors=3)},
    BayesianMFScorer: {
        "ratings": lambda: BayesianMFScorer(3, samples=10, burn_in=5),
        "all pairs": lambda: BayesianMFScorer(2, "label", 5.0, samples=10, burn_in=5),
        "text": lambda: BayesianMFScorer(2, observed="neither", text_components=3, samples=10, burn_in=5),
    },
    MFScorer: {
        "default": lambda: MFScorer(),
        "features": lambda: MFScorer(size=3, dropout=0.3, use_features=True),
    },
    SemanticScorer: {
        "default": lambda: SemanticScorer(),
        "mapped": lambda: SemanticScorer(size=3),
    },
    GRUScorer: {
        "both": lambda: GRUScorer(EventOptions(size=8)),
        "lstm": lambda: GRUScorer(EventOptions("text", size=6, ratings=False), cell="lstm", layers=2),
    },
    CaserScorer: {
        "both": lambda: CaserScorer(EventOptions(size=8)),
        "latest": lambda: CaserScorer(EventOptions("id", size=5, last=3), heights=[1, 3], user_ids=False),
    },
    SASRecScorer: {
        "both": lambda: SASRecScorer(EventOptions(size=8)),
        "latest": lambda: SASRecScorer(EventOptions("features", size=6, last=3), layers=1, heads=2, bias=False),
    },
    NRMSScorer: {
        "both": lambda: NRMSScorer(EventOptions(size=8)),
        "apart": lambda: NRMSScorer(EventOptions(size=6, share_items=False, ages=False), heads=3),
    },
    AttentionScorer: {
        "both": lambda: AttentionScorer(EventOptions(size=8)),
        "product": lambda: AttentionScorer(EventOptions("id", size=5, last=3), temperature=None, bias=False),
        "candidate": lambda: AttentionScorer(EventOptions(size=5), query="candidate"),
        "candidate's product": lambda: AttentionScorer(
            EventOptions(size=4, last=3), query="candidate", temperature=None
        ),
    },
    DINScorer: {
        "both": lambda: DINScorer(EventOptions(size=4), hidden_sizes=[16]),
        "small": lambda: DINScorer(EventOptions(size=5, last=3, share_items=False), 3, [6, 4], activation="tanh"),
    },
}


def subclasses(cls):
    return {c for child in cls.__subclasses__() for c in (child, *subclasses(child))}


for info in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
    importlib.import_module(info.name)
SCORERS = {
    cls
    for cls in subclasses(Scorer)
    if cls.__module__.startswith(package.__name__ + ".") and not inspect.isabstract(cls)
    if cls.has_grid and not cls.needs_tokens
}


def test_every_scorer_of_vectors_with_a_grid_is_under_contract():
    assert {cls.__name__ for cls in SCORERS} == {cls.__name__ for cls in FACTORIES}


def make_side(sizes, rows, seed):
    generator = torch.Generator().manual_seed(seed)
    index = torch.arange(rows) % (sizes.num_ids + 1)
    return Side(
        index,
        torch.randn(rows, sizes.features, generator=generator),
        torch.randn(rows, sizes.text, generator=generator),
    )


def make_past(rows, seed, sizes=ITEMS):
    """Pasts of 0, 1, 2, ... and at most 5 events, some without a rating."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(5) < (torch.arange(rows) % 6).unsqueeze(1)
    ratings = torch.randint(1, 6, (rows, 5), generator=generator).float()
    ages = torch.randint(1, 10**8, (rows, 5), generator=generator).sort(1, descending=True).values
    return PastSide(
        make_side(sizes, 8, seed),
        torch.randint(8, (rows, 5), generator=generator) * mask,
        torch.where(ratings == 3, torch.nan, ratings) * mask,
        ages * mask,
        mask,
    )


def training_pairs():
    rng = np.random.default_rng(0)
    user, item = np.nonzero(rng.random((USERS.num_ids, ITEMS.num_ids)) < 0.5)
    rating = rng.integers(1, 6, len(user)).astype(np.float32)
    return Pairs(user, item, (rating > 2).astype(np.float32), rating, np.zeros(len(user), np.int64))


def pairs_of(users, items):
    """Every user with every item, users outermost."""
    row, column = torch.arange(len(users)).repeat_interleave(len(items)), torch.arange(len(items)).repeat(len(users))
    return users[row], items[column]


def floats(side):
    return side.features, side.text


def with_floats(side, parts):
    return replace(side, features=parts[0], text=parts[1])


def values(grid):
    return grid.flatten(0, 1)


def assert_equal_scores(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Weights are large here, so terms cancel; what is lost by that depends on the processor, and on the largest."""
    largest = max(1.0, float(expected.detach().abs().max()))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * largest)


@pytest.mark.parametrize("num_outputs", [1, 5])
@pytest.mark.parametrize(
    "factory", [pytest.param(f, id=f"{c.__name__}-{n}") for c, v in FACTORIES.items() for n, f in v.items()]
)
class TestScorer:
    @pytest.fixture
    def scorer(self, factory, num_outputs):
        torch.manual_seed(0)
        scorer = factory()
        scorer.build(USERS, ITEMS, num_outputs)
        if isinstance(scorer, FittedScorer):
            text = torch.randn(ITEMS.num_ids, ITEMS.text)
            scorer.fit(training_pairs(), Content(SideTable(USERS.num_ids), SideTable(ITEMS.num_ids), text))
        for parameter in scorer.parameters():  # so that nothing hides behind a weight that starts at 0 or 1
            torch.nn.init.normal_(parameter, std=0.5)
        return scorer

    @pytest.fixture
    def users(self):
        return replace(make_side(USERS, 11, 1), past=make_past(11, 3))

    @pytest.fixture
    def items(self):
        return make_side(ITEMS, 10, 2)

    def test_pairs_have_one_value_an_output(self, scorer, users, items, num_outputs):
        scores = scorer(users[:10], items)
        assert scores.shape == (10, num_outputs)
        assert scores.isfinite().all()
        assert (scores.std(0) > 0).all()

    def test_the_grid_equals_the_score_of_every_pair(self, scorer, users, items, num_outputs):
        scorer.eval()
        grid = scorer.grid(users, items)
        assert grid.shape == (11, 10, num_outputs)
        assert_equal_scores(values(grid), scorer(*pairs_of(users, items)))

    @pytest.mark.parametrize("elements", [1, 700])
    def test_the_grid_is_the_same_in_chunks(self, scorer, users, items, elements, monkeypatch):
        scorer.eval()
        whole = scorer.grid(users, items)
        chunks = []
        original = scorer.grid_chunk
        monkeypatch.setattr(scorer, "grid_chunk", lambda u, p: chunks.append(len(u)) or original(u, p), raising=False)
        monkeypatch.setattr(base, "GRID_ELEMENTS", elements)
        assert_equal_scores(scorer.grid(users, items), whole)
        assert sum(chunks) == len(users)
        assert elements > 1 or len(chunks) == len(users)
        assert all(size == 1 or size * scorer.grid_width(items) <= elements for size in chunks)

    def test_some_items_are_scored_by_their_rows_of_what_was_prepared(self, scorer, users, items):
        scorer.eval()
        rows = torch.tensor([7, 0, 3])
        prepared = tuple(part[rows] for part in scorer.prepare_items(items))
        grid = scorer.grid(users, items[rows], prepared)
        assert_equal_scores(grid, scorer.grid(users, items)[:, rows])

    def test_the_width_of_the_grid_counts_at_least_its_outputs_or_items(self, scorer, items):
        assert scorer.grid_width(items) >= len(items)

    def test_every_weight_learns(self, scorer, users, items):
        torch.manual_seed(0)
        scorer.train()
        scores = scorer(*pairs_of(users, items))
        (scores * torch.randn_like(scores)).sum().backward()
        names = {name for name, p in scorer.named_parameters() if p.requires_grad}
        assert names
        assert names == {name for name, p in scorer.named_parameters() if p.grad is not None and p.grad.any()}

    def test_the_gradient_reaches_what_the_scorer_reads(self, scorer, users, items):
        inputs = (users[:10], items)
        read = [inputs[0], inputs[0].past.items] if scorer.needs_past else [inputs[0]]
        leaves = [t.requires_grad_() for side in (*read, items) for t in (side.features, side.text)]
        ids = [p for n, p in scorer.named_parameters() if n.endswith("_ids.weight")]
        scorer(*inputs).square().sum().backward()
        *reached, features, text = [leaf.grad is not None and bool(leaf.grad.any()) for leaf in leaves]
        assert (
            ids or isinstance(scorer, FittedScorer) or (any(reached[::2]) and features) or (any(reached[1::2]) and text)
        )

    def test_evaluation_repeats_itself(self, scorer, users, items):
        scorer.eval()
        assert torch.equal(scorer(users[:10], items), scorer(users[:10], items))
        assert torch.equal(scorer.grid(users, items), scorer.grid(users, items))

    def test_a_pair_is_scored_alike_in_any_company(self, scorer, users, items):
        scorer.eval()
        together = scorer(users[:10], items)
        alone = torch.cat([scorer(users[i : i + 1], items[i : i + 1]) for i in range(10)])
        assert_equal_scores(together, alone)

    @pytest.mark.parametrize("most", [2, 12])
    @pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
    def test_pairs_score_and_teach_as_if_users_were_repeated(self, scorer, users, items, most, dtype, within):
        scorer.eval().to(dtype)
        count = torch.arange(11) * 5 % (most + 1)  # some users have no pair, and some more pairs than events
        row = torch.arange(11).repeat_interleave(count)[torch.randperm(int(count.sum()))]
        items = items[torch.arange(len(row)) * 3 % 10]
        leaves = [t.to(dtype).requires_grad_() for t in (*floats(users), *floats(items), *floats(users.past.items))]
        leaves += [p for p in scorer.parameters() if p.requires_grad]
        past_items = with_floats(users.past.items, leaves[4:6])
        past = replace(users.past, items=past_items, ratings=users.past.ratings.to(dtype))
        users, items = replace(with_floats(users, leaves[:2]), past=past), with_floats(items, leaves[2:4])
        scores = [scorer.pairs(users, items, row), scorer(users[row], items)]
        torch.testing.assert_close(*scores, rtol=within, atol=within)
        weights = torch.randn_like(scores[0]) / len(row)
        found = [torch.autograd.grad((s * weights).sum(), leaves, allow_unused=True) for s in scores]
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=within, atol=within)

    def test_a_process_without_rows_gets_no_scores_and_a_gradient_of_zero(self, scorer, users, items, num_outputs):
        scores = scorer.pairs(users[:0], items[:0], torch.zeros(0, dtype=torch.int64))
        assert scores.shape == scorer(users[:0], items[:0]).shape == (0, num_outputs)
        assert scorer.grid(users[:0], items).shape == (0, 10, num_outputs)
        scores.sum().backward()
        learned = [p for p in scorer.parameters() if p.requires_grad]
        assert all(p.grad is not None and not p.grad.any() for p in learned)


def test_a_semantic_scorer_needs_text():
    with pytest.raises(ConfigError, match=r"model\.encoder"):
        SemanticScorer().build(SideSizes(3, 4, 0), SideSizes(3, 4, 0), 1)


def test_a_dnn_is_a_perceptron_over_both_sides_features():
    scorer = DNNScorer([8, 4], dropout=0.0)
    scorer.build(USERS, ITEMS, 2)
    user, item = make_side(USERS, 5, 1), make_side(ITEMS, 5, 2)
    expected = scorer.rest(scorer.first(torch.cat([user.features, item.features], 1)))
    torch.testing.assert_close(scorer(user, item), expected, rtol=1e-5, atol=1e-6)


def test_unknown_ids_are_scored_by_the_unknown_slot():
    scorer = MFScorer(size=3)
    scorer.build(USERS, ITEMS, 1)
    unknown = Side(torch.zeros(2, dtype=torch.int64), torch.randn(2, 7))
    scores = scorer(unknown, make_side(ITEMS, 1, 0)[torch.tensor([0, 0])])
    assert torch.equal(scores[0], scores[1])


# ---- one language model over both texts

LIKES = ["red things", "a red garden and coffee in winter", "blue", "blue travel books"]
THINGS = ["blue kettle", "lamp", "a red scarf in the window . paper", "stone city"]


@pytest.fixture(scope="module")
def store(tiny_bert, tmp_path_factory):
    return TokenStore.build([*LIKES, *THINGS], tiny_bert, 12, str(tmp_path_factory.mktemp("pairs")))


@pytest.fixture
def cross(tiny_bert):
    scorer = CrossEncoderScorer(tiny_bert)
    torch.manual_seed(0)
    scorer.build(USERS, ITEMS, 2)
    return scorer


def token_side(store, texts, extra=0):
    ids, mask = (torch.from_numpy(part) for part in store.padded(np.asarray(texts, np.int64)))
    ids, mask = torch.nn.functional.pad(ids, (0, extra)), torch.nn.functional.pad(mask, (0, extra))
    return Side(torch.ones(len(texts), dtype=torch.int64), torch.zeros(len(texts), 0), None, ids, mask)


@pytest.mark.parametrize(("user_padding", "item_padding"), [(0, 0), (2, 3)])
@pytest.mark.parametrize(
    ("users", "items"), [([0, 1, 2, 3], [4, 5, 6, 7]), ([1, 1], [5, 6]), ([0, 1], [6, 6]), ([2], [4])]
)
def test_joined_pairs_are_what_the_tokeniser_makes_of_two_texts(
    store, tiny_bert, users, items, user_padding, item_padding
):
    tokenizer, texts = AutoTokenizer.from_pretrained(tiny_bert), [*LIKES, *THINGS]
    expected = tokenizer([texts[u] for u in users], [texts[i] for i in items], padding=True, return_tensors="pt")
    ids, mask, types = join_pairs(token_side(store, users, user_padding), token_side(store, items, item_padding))
    assert torch.equal(ids, expected["input_ids"])
    assert torch.equal(mask, expected["attention_mask"])
    assert torch.equal(types, expected["token_type_ids"])


def test_a_cross_encoder_scores_the_first_token_of_the_pair(cross, store, tiny_bert):
    cross.eval()
    scores = cross(token_side(store, range(4)), token_side(store, range(4, 8)))
    assert scores.shape == (4, 2)
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    for user, item, score in zip(LIKES, THINGS, scores, strict=True):
        states = cross.backbone(**tokenizer(user, item, return_tensors="pt")).last_hidden_state
        assert_equal_scores(score, cross.head(states[0, 0]))


def test_a_cross_encoder_trains_the_whole_language_model(cross, store):
    assert all(module.training for module in cross.modules())
    cross(token_side(store, range(4)), token_side(store, range(4, 8))).square().sum().backward()
    assert [n for n, p in cross.named_parameters() if p.grad is None] == []


def test_a_cross_encoder_without_rows_keeps_in_step_with_the_others(cross, store):
    scores = cross(token_side(store, []), token_side(store, []))
    assert scores.shape == (0, 2)
    scores.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in cross.parameters())


def test_a_cross_encoder_has_no_grid(cross, store):
    assert not CrossEncoderScorer.has_grid
    with pytest.raises(ConfigError, match=r"whole catalogue[\s\S]*model\.ranking"):
        cross.grid(token_side(store, range(4)), token_side(store, range(4, 8)))


def test_pairs_longer_than_the_model_are_refused(cross, tiny_bert, tmp_path):
    long = TokenStore.build(["red " * 40, "blue " * 20, "blue " * 21, "blue " * 22], tiny_bert, 60, str(tmp_path))
    assert cross(token_side(long, [0]), token_side(long, [2])).shape == (1, 2)  # 64 tokens: [CLS] 40 [SEP] 21 [SEP]
    with pytest.raises(ConfigError, match=r"data\.max_length[\s\S]*65 tokens[\s\S]*at most 64"):
        cross(token_side(long, [0, 0]), token_side(long, [1, 3]))
