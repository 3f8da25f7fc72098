r"""Every benchmark by name: the paper's eight, and four training sets.

What is not confirmed says so in its notes, and no count is checked that nobody has counted.

Sources: the hub's cards and the loaders of lm-evaluation-harness, lighteval and OpenCompass. n of Avg@n is
that of the first author's earlier public evaluation [prototype]: 16 for AIME, 4 for the rest. Prompts are
this project's words [ours].
"""

from aipo.core.registry import Registry
from aipo.tasks.base import Split
from aipo.tasks.benchmarks.benchmark import Benchmark, Kind, Part, Use
from aipo.tasks.benchmarks.gpqa import COLUMNS as GPQA_COLUMNS
from aipo.tasks.benchmarks.gpqa import check_letters, gpqa_row
from aipo.tasks.benchmarks.gym_tasks import TAG
from aipo.tasks.benchmarks.programs import livecodebench_row, mbpp_row, mbpp_test_row
from aipo.tasks.benchmarks.schemas import aime_row, chat_row, gym_row, math_row

BOX = r"Reason step by step, and put the final answer inside \boxed{}."
INTEGER_BOX = r"The answer is an integer from 0 to 999. " + BOX
LETTER_BOX = r"Reason step by step, and put the letter of the right choice inside \boxed{}."
PROGRAM = "Think first. Then write the whole program in Python, in one block that begins with ```python."

_AIME_NOTE = "30 questions: the interval over questions is about ± 12 points, whatever n is."

_ENTRIES = (
    Benchmark(
        name="aime24",
        title="AIME 2024",
        in_paper=True,
        kind=Kind.INTEGER,
        use=Use.EVALUATION,
        hub="HuggingFaceH4/aime_2024",
        configuration="default",
        parts={Split.TEST: Part(hub_split="train", stem="aime24", rows=(30,))},
        licence="none stated",
        columns=(),
        convert=aime_row,
        prompt=INTEGER_BOX,
        samples=16,
        notes=(
            _AIME_NOTE,
            "Column names and types differ between hub copies; all are read. A copy of 960 rows repeats "
            "each question 32 times and is refused.",
        ),
    ),
    Benchmark(
        name="aime25",
        title="AIME 2025",
        in_paper=True,
        kind=Kind.INTEGER,
        use=Use.EVALUATION,
        hub="math-ai/aime25",
        configuration="default",
        parts={Split.TEST: Part(hub_split="test", stem="aime25", rows=(30,))},
        licence="not stated",
        columns=(),
        convert=aime_row,
        prompt=INTEGER_BOX,
        samples=16,
        notes=(
            _AIME_NOTE,
            r"The published gold of one problem is `336^\circ`; a degree sign counts neither in golds nor in "
            "answers.",
        ),
    ),
    Benchmark(
        name="math500",
        title="MATH500",
        in_paper=True,
        kind=Kind.MATH,
        use=Use.EVALUATION,
        hub="HuggingFaceH4/MATH-500",
        configuration="default",
        parts={Split.TEST: Part(hub_split="test", stem="math500", rows=(500,))},
        licence="MIT",
        columns=("problem", "answer"),
        convert=math_row("problem", "answer", "unique_id", "id"),
        prompt=BOX,
        samples=4,
        notes=(
            "Widely in pretraining data: Qwen2.5-Math-7B completes 54.6 % of its questions from their first "
            "60 % (arXiv 2507.10532). Report a clean set beside it.",
        ),
    ),
    Benchmark(
        name="livemathbench",
        title="LiveMathBench v202505",
        in_paper=True,
        kind=Kind.MATH,
        use=Use.EVALUATION,
        hub="opencompass/LiveMathBench",
        configuration="v202505_all_en",
        parts={Split.TEST: Part(hub_split="test", stem="livemathbench")},
        licence="CC-BY-4.0",
        columns=("question", "answer"),
        convert=math_row("question", "answer"),
        prompt=BOX,
        samples=4,
        notes=(
            "About 100 rows, not confirmed: the count is not checked.",
            "Its authors report G-Pass@k with a judge model; here math-verify decides, for Avg@n.",
        ),
    ),
    Benchmark(
        name="gpqa_diamond",
        title="GPQA-Diamond",
        in_paper=True,
        kind=Kind.CHOICE,
        use=Use.EVALUATION,
        hub="Idavidrein/gpqa",
        configuration="gpqa_diamond",
        parts={Split.TEST: Part(hub_split="train", stem="gpqa_diamond", rows=(198,))},
        licence="CC-BY-4.0; its authors ask not to post items in the clear",
        columns=GPQA_COLUMNS,
        convert=gpqa_row,
        prompt=LETTER_BOX,
        samples=4,
        check=check_letters,
        notes=(
            "Gated on the hub: accept its conditions, then `hf auth login`.",
            "Guessing scores 25 %, and pass@k goes to 1 by guessing: no claim about boundaries from it.",
            "The order of the choices is this project's; letters differ from other frameworks'.",
        ),
    ),
    Benchmark(
        name="mbpp",
        title="MBPP (sanitized)",
        in_paper=True,
        max_response_tokens=8_192,
        kind=Kind.CODE,
        use=Use.EVALUATION,
        hub="google-research-datasets/mbpp",
        configuration="sanitized",
        parts={
            Split.TEST: Part(hub_split="test", stem="mbpp_sanitized", rows=(257, 427), select=mbpp_test_row)
        },
        licence="CC-BY-4.0",
        columns=("task_id", "prompt", "code", "test_list"),
        convert=mbpp_row,
        prompt=PROGRAM,
        samples=4,
        notes=(
            "The problem shows the very asserts that grade it: a program that hard-codes them passes. Report "
            "MBPP+ beside it.",
            "The whole file has 427 rows; the test split is task ids 11 to 510, 257 rows.",
        ),
    ),
    Benchmark(
        name="livecodebench_v6",
        title="LiveCodeBench v6",
        in_paper=True,
        kind=Kind.CODE,
        use=Use.EVALUATION,
        hub="livecodebench/code_generation_lite",
        configuration="",
        parts={Split.TEST: Part(hub_split="test6.jsonl", stem="livecodebench_v6", rows=(175,))},
        licence="cc",
        columns=("question_content", "private_test_cases"),
        convert=livecodebench_row,
        prompt=PROGRAM,
        samples=4,
        hub_file=True,
        notes=(
            "`v6` is two things: 175 rows of test6.jsonl (2025-01-04 to 2025-04-06), which this is, and the "
            "1,055 rows of release_v6. Say which.",
            "The hub holds a script, which datasets>=4 refuses; the file itself is fetched.",
            "Its errata list 12 problems with several answers, 2 interactive ones and 4 with wrong tests; "
            "official scores keep them, and so does this.",
            "There are no reference programs: `aipo tasks validate` cannot check golds.",
        ),
    ),
    Benchmark(
        name="reasoning_gym",
        title="Reasoning-Gym, 25 of the 27 tasks x 10",
        in_paper=True,
        kind=Kind.REASONING_GYM,
        use=Use.TRAINING,
        hub="",
        configuration="paper",
        parts={
            Split.TRAIN: Part(hub_split="", stem="reasoning_gym_train"),
            Split.VALIDATION: Part(hub_split="", stem="reasoning_gym_validation"),
            Split.TEST: Part(hub_split="", stem="reasoning_gym_test", rows=(250,)),
        },
        licence="Apache-2.0",
        columns=("task", "question", "answer", "metadata"),
        convert=gym_row,
        prompt=TAG,
        samples=4,
        notes=(
            "The test items are packaged, frozen: 25 tasks x 10, seed 2 x 10^8. Training items are drawn by "
            "`aipo tasks generate reasoning_gym`, seed 0, and share no question with them.",
            "Left out of the 27: game_of_life_halting, whose scorer accepts any answer, and rush_hour, which "
            "has no answer of its own.",
            "game_of_life boards are seeded with 90 cells; with the library's default of 10 every answer is "
            "the empty board.",
            "A score counts as right from 1.0 only: one wrong cell of a board's 900 scores 0.9989.",
            "acre, mahjong_puzzle and zebra_puzzles have few possible answers: guessing scores 14 to 33 %.",
        ),
    ),
    Benchmark(
        name="gsm8k",
        title="GSM8K",
        kind=Kind.MATH,
        use=Use.TRAINING,
        hub="openai/gsm8k",
        configuration="main",
        parts={
            Split.TRAIN: Part(hub_split="train", stem="gsm8k_train", rows=(7473,)),
            Split.TEST: Part(hub_split="test", stem="gsm8k_test", rows=(1319,)),
        },
        licence="MIT",
        columns=("question", "answer"),
        convert=math_row("question", "answer", after="####"),
        prompt=BOX,
        samples=4,
        notes=("The gold stands after `####` in the worked answer.",),
    ),
    Benchmark(
        name="dapo_math_17k",
        title="DAPO-Math-17k",
        kind=Kind.MATH,
        use=Use.TRAINING,
        hub="open-r1/DAPO-Math-17k-Processed",
        configuration="all",
        parts={Split.TRAIN: Part(hub_split="train", stem="dapo_math_17k")},
        licence="Apache-2.0",
        columns=("prompt", "reward_model"),
        convert=chat_row,
        prompt=BOX,
        samples=1,
        repeats=True,
        notes=(
            "The original file (BytedTsinghua-SIA/DAPO-Math-17k) has about 1.79 M rows, each prompt 100 "
            "times; later copies are dropped. About 17.4 k remain, not confirmed: the count is not checked.",
            "Overlap with AMC, AIME and MATH is likely: `aipo tasks contamination` counts it.",
        ),
    ),
    Benchmark(
        name="deepmath_103k",
        title="DeepMath-103K",
        kind=Kind.MATH,
        use=Use.TRAINING,
        hub="zwhe99/DeepMath-103K",
        configuration="default",
        parts={Split.TRAIN: Part(hub_split="train", stem="deepmath_103k")},
        licence="MIT",
        columns=("question", "final_answer"),
        convert=math_row("question", "final_answer"),
        prompt=BOX,
        samples=1,
        repeats=True,
        notes=("About 103 k rows, not confirmed: the count is not checked.",),
    ),
    Benchmark(
        name="openr1_math_46k",
        title="OpenR1-Math, LUFFY's 46k",
        kind=Kind.MATH,
        use=Use.TRAINING,
        hub="Elliott/Openr1-Math-46k-8192",
        configuration="default",
        parts={Split.TRAIN: Part(hub_split="train", stem="openr1_math_46k")},
        licence="not stated; its source, open-r1/OpenR1-Math-220k, is Apache-2.0",
        columns=("prompt", "reward_model"),
        convert=chat_row,
        prompt=BOX,
        samples=1,
        repeats=True,
        notes=(
            "About 46 k rows, not confirmed: the count is not checked.",
            "Its expert traces (column `target`) are not read.",
            "Overlap with AMC, AIME and MATH is likely: `aipo tasks contamination` counts it.",
        ),
    ),
)

BENCHMARKS: Registry[Benchmark] = Registry("benchmark", Benchmark)
"""All of them, the paper's eight first."""
for _entry in _ENTRIES:
    BENCHMARKS.register(_entry.name, _entry)

PAPER_EIGHT: tuple[str, ...] = tuple(name for name, benchmark in BENCHMARKS.items() if benchmark.in_paper)
