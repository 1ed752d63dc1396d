"""What a quantization job takes: memory by step and disk, before any pod exists. Pure arithmetic on a model's facts.

Memory follows the walk: of one decoder layer what something runs through, in float32, its codes, one micro-batch.
Hidden states lie on disk, and in memory only as far as the line leaves room, so they are no part of what is needed.
"""

from dataclasses import dataclass

from plimsoll.api.budget import CONTEXT_BYTES
from plimsoll.api.cache_loss import CACHES_BY_BYTES
from plimsoll.api.device import HOST_BYTES_PER_DEVICE, TORCH_TABLE, DeviceFacts
from plimsoll.api.errors import SpecError
from plimsoll.api.families.registry import find_family
from plimsoll.api.layer_tensors import role_shape
from plimsoll.api.model import ModelFacts
from plimsoll.api.precision import GROUP_SIZES, HeldCache
from plimsoll.api.sizes import Matrix, block_bytes, matrices, vector_elements, weight_bytes, workspace_terms
from plimsoll.api.ways_out import MIB

FLOAT = 4
#: Tokens of a window, and windows that calibrate: `self` text has to be drawn first, which takes a CPU long.
DEFAULT_LENGTH, DEFAULT_SELF, DEFAULT_SAMPLES = 512, 32, 128
#: Columns of the widest block of products that inputs are counted in.
GRAM_COLUMNS = 2048
#: What a job's process takes before it has read anything: interpreter, torch, kernels.
PROCESS_BYTES = 288 * MIB
#: What the heaps of a job's threads keep, and its tokenizer's code, beside what any process starts with.
HEAP_BYTES = 48 * MIB
#: The same of another worker, with what it receives and answers: tensors of two tasks lie there for a moment.
WORKER_HEAP_BYTES = 96 * MIB
#: Sequences that the engine samples `self` text in at once.
SAMPLED_AT_ONCE = 32
#: Rows of logits that an evaluation holds at once, of each model that it compares.
LOGIT_ROWS = 128
#: Logits that exist at once: the reference's, the output's, another's, and the pieces that one is joined from.
LOGITS_AT_ONCE = 4
#: Pieces of a head that are float32 at once, one a thread.
HEAD_PIECES_BYTES = 64 * MIB
#: Rows that candidates of a search are judged on, at most, and candidates.
JUDGED_ROWS, CANDIDATES = 2048, 41
#: Rows that get their codes together.
CODED_ROWS = 512
#: Workers of a job, at most.
MOST_WORKERS = 64
#: Beside weights: configuration, tokenizer, report, manifest.
PAPERS_BYTES = 32 * MIB
_ROUND = 64 * MIB


def default_samples(sampled: bool) -> int:
    """Windows that calibrate where no number is given. Args: sampled: they are `self` text."""
    return DEFAULT_SELF if sampled else DEFAULT_SAMPLES


@dataclass(frozen=True)
class JobLoad:
    """What decides how much a job takes."""

    method: str
    bits: int
    group_size: int
    """0: one scale a row."""
    samples: int
    length: int
    """Tokens of a sample."""
    batch: int = 1
    """Sequences that are computed at once; 1 by default."""
    sampled: bool = False
    """Text is sampled from the model, by our engine."""
    held_out: int = 0
    """Samples that are measured on."""
    libraries: int = 0
    """Bytes, as in `DeviceFacts`."""
    workers: int = 1
    """Processes that share the searches, the job's own among them; 1 by default."""
    devices: int = 0
    """GPUs that search in place of the workers, with a process of its own for each; 0 on a CPU."""


@dataclass(frozen=True)
class JobNeeds:
    """Bytes."""

    walk: int
    sampling: int
    evaluation: int
    memory: int
    """The largest of the three: they follow one another."""
    output: int
    scratch: int
    """Hidden states, of the walk and then of the evaluation; between them one shard twice, while shards are merged."""
    device: int = 0
    """Of each GPU that searches; 0 on a CPU. All else is memory of the host."""

    @property
    def disk(self) -> int:
        return self.output + self.scratch


def job_needs(facts: ModelFacts, load: JobLoad) -> JobNeeds:
    """The sums.

    Raises:
        SpecError: groups do not divide a width of the model; the sizes that do are named.
    """
    check_groups(facts, load.group_size)
    base = process_bytes(load)
    whole = 4 if facts.dtype == "F32" else 2
    layer = layer_bytes(facts)
    batch = batch_bytes(facts, load)
    others = load.devices or load.workers - 1
    walk = base + _walk(facts, load) + others * worker_bytes(facts, load)
    # Of the model as it was and of the output, side by side.
    head = facts.vocab_size * facts.hidden_size * (_held_bytes(facts) + 2)
    logits = LOGITS_AT_ONCE * LOGIT_ROWS * facts.vocab_size * FLOAT + HEAD_PIECES_BYTES
    evaluation = base + 2 * layer + batch + head + logits if load.held_out else 0
    sampling = base + _engine(facts, load) if load.sampled else 0
    return JobNeeds(
        walk=walk,
        sampling=sampling,
        evaluation=evaluation,
        memory=-(-max(walk, sampling, evaluation) // _ROUND) * _ROUND,
        output=_output(facts, load, whole),
        # One after the other: the walk, the merge of its shards, the evaluation.
        scratch=max(
            2 * FLOAT * load.samples * load.length * facts.hidden_size,
            _largest_shard(facts, load, whole),
            _kept_evaluation(facts, load),
        ),
        device=CONTEXT_BYTES["cuda"] + WORKER_HEAP_BYTES + _share(facts, load) if load.devices else 0,
    )


def process_bytes(load: JobLoad) -> int:
    """Of the process itself, before it has read anything."""
    return PROCESS_BYTES + load.libraries


def _walk(facts: ModelFacts, load: JobLoad) -> int:
    hidden, inner = facts.hidden_size, facts.intermediate_size
    down = inner * hidden
    codes = layer_bytes(facts) // FLOAT
    attention = codes - 3 * down
    if load.method != "awq":
        # One linear at a time, and the codes once more as they are written.
        return HEAP_BYTES + codes + codes * load.bits // 8 + FLOAT * max(_largest_linear(facts), attention)
    # Gate and up run until the inputs of down are counted; down is read after, and then all three run once more.
    held = max(attention, 2 * down + max(down, inner * min(inner, GRAM_COLUMNS)))
    row = 2 * (inner + hidden) + _scores(facts, load)
    return HEAP_BYTES + codes + FLOAT * (held + load.batch * load.length * row)


def worker_bytes(facts: ModelFacts, load: JobLoad) -> int:
    """Host memory of each process that shares the searches, beside the job's own: itself, and its share of the largest
    grouping, which passes through the host on its way to a device."""
    itself = HOST_BYTES_PER_DEVICE if load.devices else process_bytes(load)
    return itself + WORKER_HEAP_BYTES + _share(facts, load)


def _share(facts: ModelFacts, load: JobLoad) -> int:
    """Tensors of the largest grouping that one of those that search holds."""

    def share(targets: tuple[str, ...]) -> int:
        shapes = [role_shape(facts, role) for role in targets]
        rows, columns = sum(rows for rows, _ in shapes), shapes[0][1]
        block = min(columns, GRAM_COLUMNS)
        judged = (min(rows, JUDGED_ROWS) + CANDIDATES) * columns * FLOAT
        mine = min(rows, -(-rows // (load.devices or load.workers)) + CODED_ROWS)
        # Rows and their codes; an order of columns while it is found; what one run needs on the way.
        coded = mine * columns * (FLOAT + 1) + FLOAT * block * (2 * block + 5 * min(mine, CODED_ROWS))
        return FLOAT * columns * block + max(judged, coded)

    found = find_family(facts.architecture).groupings
    return max((share(one.targets) for one in found), default=0)


def _largest_linear(facts: ModelFacts) -> int:
    """Elements of the largest linear of a layer as it is stored: a part of it is read with the whole."""
    found = 0
    for linear in find_family(facts.architecture).names.linears:
        shapes = [role_shape(facts, role) for role in linear.roles]
        found = max(found, sum(rows for rows, _ in shapes) * shapes[0][1])
    return found


def layer_bytes(facts: ModelFacts) -> int:
    """Of the linears of one layer, in float32."""
    return FLOAT * sum(matrix.rows * matrix.columns for matrix in matrices(facts) if matrix.linear)


def batch_bytes(facts: ModelFacts, load: JobLoad) -> int:
    """Of one micro-batch, in float32: what each linear of a layer sees and makes, of all its sequences."""
    row = 4 * facts.hidden_size + 3 * facts.intermediate_size + 2 * (facts.num_heads + 2) * facts.head_dim
    row += _scores(facts, load)
    return FLOAT * load.batch * load.length * row


def _scores(facts: ModelFacts, load: JobLoad) -> int:
    """Numbers of a token in the scores of one head, where a soft cap needs them whole: scores, exponents, a mask."""
    return 3 * load.length if any(spec.attention_softcap for spec, _ in facts.kinds) else 0


def least_disk(facts: ModelFacts, load: JobLoad) -> int:
    """Bytes of disk that every run of a job needs: with less, the job cannot finish.

    No papers, whole tensors in 16 bits, and hidden states as they lie where memory holds them too.
    """
    walked = load.samples * min(2, facts.num_layers)
    measured = load.held_out * (compared_models(facts, load.method) + 1)
    # Zero points are counted in whole bytes a row, and some formats pack them across rows.
    weights = (_output(facts, load, 2) - PAPERS_BYTES) * 99 // 100
    merged = _largest_shard(facts, load, 2) * 99 // 100
    return weights + max(merged, FLOAT * max(walked, measured) * load.length * facts.hidden_size)


def measured_caches(facts: ModelFacts) -> tuple[HeldCache, ...]:
    """Caches of codes that an evaluation measures: none where two codes would have to share a byte of two heads."""
    return () if facts.head_dim % 2 else CACHES_BY_BYTES[::-1]


def compared_models(facts: ModelFacts, method: str) -> int:
    """That an evaluation compares: as it was, the output, for awq rounding to nearest, the output with each cache."""
    return (3 if method == "awq" else 2) + len(measured_caches(facts))


def _kept_evaluation(facts: ModelFacts, load: JobLoad) -> int:
    """Of each model its hidden states and what a killed job goes on from, of one the next of these, and figures.

    The walk's hidden states are gone by then.
    """
    models = compared_models(facts, load.method)
    tokens = load.held_out * load.length
    return tokens * ((2 * models + 1) * FLOAT * facts.hidden_size + 8 * (3 * models - 2))


def _held_bytes(facts: ModelFacts) -> int:
    """Of one number of the head as it is read: what lies in blocks becomes float32."""
    if facts.tensors is None:
        return FLOAT if facts.dtype == "F32" else 2
    wide = [tensor.dtype for tensor in facts.tensors.values() if tensor.shape[:1] == (facts.vocab_size,)]
    return 2 if set(wide) <= {"BF16", "F16"} else FLOAT


def check_groups(facts: ModelFacts, group_size: int) -> None:
    """Raises SpecError where a linear's width does not divide by `group_size`, with the sizes that work."""
    wrong = undivided(facts, group_size)
    if not wrong:
        return
    fits = [size for size in GROUP_SIZES if not undivided(facts, size)]
    fix = f"Write {' or '.join(map(str, fits))}" if fits else "Use method int8, which has no groups"
    raise SpecError(
        f"does not divide {' and '.join(map(str, wrong))} columns of this model",
        field="spec.weights.groupSize", value=group_size, fix=fix,
    )  # fmt: skip


def undivided(facts: ModelFacts, group_size: int) -> list[int]:
    """Widths of the model's linears that groups of `group_size` columns do not divide; 0 divides all."""
    widths = {matrix.columns for matrix in matrices(facts) if matrix.linear}
    return sorted(width for width in widths if group_size and width % group_size)


def largest_group(facts: ModelFacts, most: int = GROUP_SIZES[0]) -> int:
    """The largest group of at most `most` columns that divides every width; `most` where none does."""
    return next((size for size in GROUP_SIZES if size <= most and not undivided(facts, size)), most)


def _engine(facts: ModelFacts, load: JobLoad) -> int:
    device = DeviceFacts("cpu", 1 << 62, TORCH_TABLE)
    terms = workspace_terms(facts, "bfloat16", device, load.length, SAMPLED_AT_ONCE, load.length)
    blocks = SAMPLED_AT_ONCE * -(-load.length // 64)
    # What the engine counts for itself, all of it: below that it would draw in fewer bits.
    return weight_bytes(facts, "bfloat16", device) + sum(terms.values()) + blocks * block_bytes(facts, 64, "bfloat16")


def _output(facts: ModelFacts, load: JobLoad, whole: int) -> int:
    """Codes, a 16-bit scale a group, a zero point of 4 bits; what is not quantized in `whole` bytes a number."""
    held = sum(
        matrix.count * (_coded(matrix, load) if matrix.linear else matrix.rows * matrix.columns * whole)
        for matrix in matrices(facts)
    )
    return PAPERS_BYTES + vector_elements(facts) * whole + held


def _largest_shard(facts: ModelFacts, load: JobLoad, whole: int) -> int:
    """Of what lies outside the layers, or of one layer: a merge copies each before it removes it."""
    found = matrices(facts)
    outer = sum(matrix.rows * matrix.columns * matrix.count * whole for matrix in found if not matrix.linear)
    return max(outer, sum(_coded(matrix, load) for matrix in found if matrix.linear))


def _coded(matrix: Matrix, load: JobLoad) -> int:
    """Bytes of one quantized matrix."""
    groups = matrix.columns // load.group_size if load.group_size else 1
    zeros = -(-groups // 2) if load.bits == 4 else 0
    return matrix.rows * (matrix.columns * load.bits // 8 + groups * 2 + zeros)
