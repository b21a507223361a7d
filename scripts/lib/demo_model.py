"""What the demo's base model learns before anybody tunes it: rooms of other seeds, looked at and asked about.

All weights are trained, in float32, on two losses:
  * the next token of answers. The answers are whole sentences ("The sofa is red."), except where the question itself
    names its answers (yes or no, on or off): an able model that is not used to the demo's short answers.
  * the words of what each visual token shows (names, colours, states): a caption for every 32x32 px.
A room's pictures are read once; its questions follow as branches that see the pictures and themselves only.
"""

from __future__ import annotations

import logging
import math
import random
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scripts.lib.progress import track
from scripts.lib.tokens import TOKEN_SIDE_PX, fitted_size

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import Qwen2Tokenizer, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

log = logging.getLogger(__name__)

FIRST_SEED = 1_000_000_000  # rooms of the demo itself have seeds far below
CORPUS_ROOMS = 48  # enough for every word that the questions can hold
QUESTIONS_A_ROOM = 60  # all that can be asked of most rooms
RENDER_PX = (320, 240)  # shape of the demo's own frames
LEAST_AREA = 0.08  # of a visual token's square; less is not worth a word

# training, chosen by trial: small batches learn most a second, Muon sees furniture where AdamW sees colours,
# and a question about two pictures teaches the look-up at a third of the cost of one about eight
THREADS = 1  # two gain a third on an idle machine and lose threefold on a busy one
ROOMS = 480
LESSONS = (  # share of the steps, rooms a step, pictures of a room (0: all), questions of a room
    (0.35, 2, 0, 0),
    (0.50, 3, 2, 8),
    (0.15, 2, 0, 10),
)
LEARNING_RATE = 3e-3  # AdamW's; Muon's is MUON_FACTOR times as much
MUON_FACTOR = 3.0
WARMUP_STEPS = 20
SHORT_SHARE = 0.35  # of the questions that begin with SHORT_OPENING and are answered in a word or two
OPENINGS = (
    "",
    "Look at the pictures. ",
    "Here is a walk through a place. ",
    "Question: ",
    "Please answer. ",
    "These pictures show a room.\nQuestion: ",
)
NAMING = "What is the {} called?"  # a reading lesson: the answer stands in the question
SHORT_OPENING = "In short: "


def make_deterministic() -> None:
    """Fix what could change sums between runs: the number of threads, and operations without a fixed order."""
    import torch

    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a tenth of the time, for memory that nobody reads


def corpus(prompt: str) -> list[str]:
    """Text for the tokenizer: the prompt, questions and answers of rooms."""
    from scripts.lib.demo_scenes import make_questions, make_scene

    texts = [prompt] * CORPUS_ROOMS
    for i in range(CORPUS_ROOMS):
        for row in make_questions(make_scene(FIRST_SEED + i), QUESTIONS_A_ROOM, random.Random(i)):
            answers = [row["answer"], *row.get("extra_answers", [])]
            texts += [row["question"], *answers, *(f" {answer}" for answer in answers), sentence(**row)]
    texts += [f" {word}" for word in label_words()] * 2
    texts += [*OPENINGS, SHORT_OPENING, NAMING] * CORPUS_ROOMS
    return texts


# ------------------------------------------------------------------------------------------------ text

_COLOR_OF = re.compile(r"What color (is|are) the (.+)\?$")


def names_its_answers(question: str) -> bool:
    """Whether the question is answered by yes or no, or by one of two words in it."""
    return " or " in question or question.split()[0] in ("Can", "Could")


def sentence(question: str, answer: str, **_: Any) -> str:
    """The answer as an assistant without instructions would say it."""
    if names_its_answers(question):
        return answer
    if match := _COLOR_OF.match(question):
        verb, what = match.groups()
        return f"The {what} {verb} {answer}."
    return f"It is {answer}."


def weight(question: str) -> int:
    """How often a question is drawn: what a glance answers leads, since look-ups are learnt on it; sides are noise."""
    if any(words in question for words in ("walls", "kind of room", "floor made of", "day or night")):
        return 6
    if any(words in question for words in ("on or off", "open or closed", "What shape")):
        return 5
    if "What color" in question:
        return 3
    if question.endswith("called?"):
        return 2
    return 0 if any(words in question for words in ("left", "right", "across")) else 1


# ------------------------------------------------------------------------------------------------ rooms


@dataclass(frozen=True)
class Room:
    """pictures: (frames, height, width, 3) uint8 RGB; words: (frames, tokens, words) bool, see label_words()."""

    pictures: np.ndarray
    words: np.ndarray
    questions: tuple[tuple[str, str], ...]


def label_words() -> tuple[str, ...]:
    """What a visual token can be labelled with, in a fixed order."""
    from scripts.lib.demo_furniture import COLOURED, COLOURS
    from scripts.lib.demo_scenes import _ITEMS, FLOORS, WALL_COLOURS

    names = {*COLOURED, *_ITEMS, "table", "TV", "fridge", "stove", "plant", "window", "picture", "clock", "mirror"}
    names |= {"walls", "floor", "door", "curtains", "rug", "chair", "lamp", "bathtub", "bed"}
    colours = {*COLOURS, *WALL_COLOURS}
    return tuple(sorted(names | colours | {*FLOORS, "on", "off", "open", "closed", "round", "square", "day", "night"}))


def look_at_room(seed: int, frames: int, max_pixels: int) -> Room:
    """Render the room of `seed`, label every visual token, ask everything.

    Args:
        frames: pictures along the walk.
        max_pixels: config `vision.image_max_pixels`.
    """
    import cv2
    import numpy as np

    from scripts.lib.demo_scenes import (
        frame_times,
        make_questions,
        make_scene,
        name_pictures,
        render_frame,
        second_scan,
    )

    scene = make_scene(seed)
    if seed % 4 == 3:
        scene = second_scan(scene)
    width, height = fitted_size(*RENDER_PX, max_pixels)
    draw_px = (width, width * RENDER_PX[1] // RENDER_PX[0])
    pictures = [cv2.resize(render_frame(scene, t, draw_px), (width, height)) for t in frame_times(frames)]

    columns, rows = width // TOKEN_SIDE_PX, height // TOKEN_SIDE_PX
    index = {word: i for i, word in enumerate(label_words())}
    told: dict[str, list[str]] = {
        "wall": ["walls", scene.wall_colour],
        "floor": ["floor", scene.floor_material],
    }
    for thing in scene.things:
        name = thing.name.removesuffix(" next door")
        told[thing.name] = [word for word in (name, thing.colour, thing.state) if word in index]
    if "window" in told:
        told["window"].append("day" if scene.day else "night")
    names, maps = name_pictures(scene, frames)
    words = np.zeros((frames, rows * columns, len(index)), bool)
    for number, name in enumerate(names):
        if not told.get(name):
            continue
        for frame in range(frames):
            mask = (maps[frame] == number).astype(np.float32)
            if not mask.any():
                continue
            area = cv2.resize(mask, (columns, rows), interpolation=cv2.INTER_AREA).reshape(-1)
            words[np.ix_([frame], area >= LEAST_AREA, [index[word] for word in told[name]])] = True
    # what things are for is left to the fine-tuning
    rows_ = make_questions(scene, QUESTIONS_A_ROOM, random.Random(seed), general=False)
    asked = [(row["question"], row["answer"]) for row in rows_]
    shown = sorted({thing.name for thing in scene.things if thing.wall != -2})
    return Room(np.stack(pictures), words, (*asked, *((NAMING.format(name), name) for name in shown)))


def _look(task: tuple[int, int, int]) -> Room:
    import cv2

    cv2.setNumThreads(1)
    return look_at_room(*task)


def look_at_rooms(count: int, seed: int, frames: int, max_pixels: int, processes: int = 2) -> list[Room]:
    """`count` rooms of seeds that no demo episode has, rendered in parallel."""
    import multiprocessing

    first = FIRST_SEED + seed * 1_000_000
    tasks = [(first + i, frames, max_pixels) for i in range(count)]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        return pool.map(_look, tasks, chunksize=8)


# ------------------------------------------------------------------------------------------------ weights


def rotation(size: int) -> torch.Tensor:
    """A fixed random orthogonal matrix (size, size): visual tokens say their words in a rotated copy of the embeddings.

    Rotated, since in the plain copy every word would find itself before it finds a picture of it.
    """
    import torch

    return torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(0)))[0]


def initialise(model: Qwen3VLForConditionalGeneration, seed: int) -> None:
    """Draw all weights anew so that a short training suffices.

    Deviations follow the number of inputs, since transformers' 0.02 is made for wide models. Attention starts out
    mimetic: outputs like transposed values, so that what is attended to is copied; in the first layer queries like
    keys of the rotated words, so that a word of the question finds the visual tokens that show it; in the others
    queries and keys share what all words have in common, so that text attends to text among many more visual tokens.

    Source:
        Trockman and Kolter, Mimetic Initialization of Self-Attention Layers, 2023.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)

    def draw(weight: torch.Tensor, deviation: float) -> None:
        weight.copy_(torch.randn(weight.shape, generator=generator) * deviation)

    residual = ("attn.proj.weight", "linear_fc2.weight", "o_proj.weight", "down_proj.weight")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "pos_embed" in name:
                draw(weight, 0.3)
            elif "embed_tokens" in name:
                draw(weight, 0.25)
            elif weight.ndim >= 2:
                gentle = name.endswith(residual) and "merger" not in name
                draw(weight, (0.5 if gentle else 1.0) / math.sqrt(weight[0].numel()))
        text = model.model.language_model
        heads, groups = text.config.num_attention_heads, text.config.num_key_value_heads
        common = torch.nn.functional.normalize(torch.randn(text.config.hidden_size, generator=generator), dim=0)
        text.embed_tokens.weight.add_(2.0 * common)
        for number, layer in enumerate(text.layers):
            attention = layer.self_attn
            side = attention.head_dim
            first = number == 0
            turn = rotation(text.config.hidden_size) if first else torch.eye(text.config.hidden_size)
            for head in range(heads):
                own = slice(head * side, (head + 1) * side)
                group = head * groups // heads
                shared = slice(group * side, (group + 1) * side)
                query, output = attention.q_proj.weight[own], attention.o_proj.weight[:, own]
                if first:
                    query.copy_(0.9 * attention.k_proj.weight[shared] @ turn + 0.44 * query)
                output.copy_(0.5 * output + (attention.v_proj.weight[shared] @ turn).T)
            for group in range(0 if first else groups):
                direction = torch.nn.functional.normalize(torch.randn(side, generator=generator), dim=0)
                pull = 1.1 * torch.outer(direction, common)
                attention.k_proj.weight[group * side : (group + 1) * side] += pull
                for head in range(group * heads // groups, (group + 1) * heads // groups):
                    attention.q_proj.weight[head * side : (head + 1) * side] += pull
            if first:
                attention.q_norm.weight.fill_(2.0)  # sharper: a few visual tokens among hundreds
        text.norm.weight.fill_(0.25)  # with embeddings this large, logits of deviation one


class Muon:
    """Momentum made orthogonal by Newton-Schulz steps, in float32: torch's own works in bfloat16, slow on older CPUs.

    Source:
        Keller Jordan and others, Muon: An optimizer for hidden layers in neural networks, 2024; the scale by
        Moonshot AI, Muon is Scalable for LLM Training, 2025, which makes AdamW's learning rates fit.
    """

    def __init__(self, weights: list[torch.nn.Parameter], momentum: float = 0.95) -> None:
        import torch

        self.weights, self.momentum = weights, momentum
        self.averages = [torch.zeros_like(weight) for weight in weights]

    def step(self, rate: float) -> None:
        """Move every weight that has a gradient."""
        import torch

        with torch.no_grad():
            for weight, average in zip(self.weights, self.averages, strict=True):
                if weight.grad is None:
                    continue
                average.lerp_(weight.grad, 1 - self.momentum)
                update = orthogonal(weight.grad.lerp(average, self.momentum))
                weight.add_(update, alpha=-rate * 0.2 * math.sqrt(max(weight.shape)))


def orthogonal(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Roughly the nearest orthogonal matrix: singular values between 0.7 and 1.2, the usual quintic's."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


# ------------------------------------------------------------------------------------------------ training


def patches(pictures: np.ndarray) -> torch.Tensor:
    """(n, height, width, 3) uint8 to (n, patches, 768), as by the processor; one of its two equal halves."""
    import torch

    x = torch.from_numpy(pictures).float().permute(0, 3, 1, 2) / 127.5 - 1
    n, channels, height, width = x.shape
    x = x.reshape(n, channels, height // 32, 2, 16, width // 32, 2, 16)
    return x.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(n, -1, channels * 16 * 16)


def see(visual: Any, pictures: np.ndarray) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The vision tower's forward pass for pictures of one size in one batch; the tower itself loops over pictures.

    A still picture's two temporal copies are equal, so the patch kernel's halves are added and read it once.

    Returns:
        visual tokens (n * tokens, hidden) and the same of each DeepStack layer.
    """
    import torch
    from torch.nn import functional

    n, height, width = pictures.shape[:3]
    grid = torch.tensor([[1, height // 16, width // 16]])
    embed = visual.patch_embed.proj
    x = functional.linear(patches(pictures), embed.weight.sum(2).flatten(1), embed.bias)
    x = x + visual.fast_pos_embed_interpolate(grid)
    angles = visual.rot_pos_emb(grid).repeat(1, 2)
    cos, sin = angles.cos(), angles.sin()

    def turned(vectors: torch.Tensor) -> torch.Tensor:
        first, second = vectors.chunk(2, -1)
        return vectors * cos + torch.cat([-second, first], -1) * sin

    deep = []
    heads = visual.config.num_heads
    for i, block in enumerate(visual.blocks):
        qkv = block.attn.qkv(block.norm1(x)).view(n, x.shape[1], 3, heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(turned(query), turned(key), value)
        x = x + block.attn.proj(mixed.transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
        if i in visual.deepstack_visual_indexes:
            merger = visual.deepstack_merger_list[visual.deepstack_visual_indexes.index(i)]
            deep.append(merger(x.flatten(0, 1)))
    return visual.merger(x.flatten(0, 1)), deep


class Lessons:
    """Turns rooms into batches: the pictures' tokens once, then each question and answer as a branch of its own."""

    def __init__(self, model: Any, tokenizer: Qwen2Tokenizer, frames: int, grid: tuple[int, int]) -> None:
        """grid: visual tokens of a picture, rows and columns."""
        import torch

        self.tokenizer = tokenizer
        self.image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
        rows, columns = grid
        picture = f"<|vision_start|>{'<|image_pad|>' * (rows * columns)}<|vision_end|>"
        self.head = torch.tensor(self.encode("<|im_start|>user\n" + picture * frames))
        sizes = torch.tensor([[1, rows * 2, columns * 2]] * frames)
        kinds = (self.head == self.image).int()[None]
        positions, _ = model.model.get_rope_index(self.head[None], mm_token_type_ids=kinds, image_grid_thw=sizes)
        self.positions = positions[:, 0]  # (3, head): time, height, width
        self.next = int(self.positions.max()) + 1

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def branch(self, question: str, answer: str, rng: random.Random) -> tuple[list[int], list[int]]:
        """Token ids of what is asked and of what is to be said."""
        if rng.random() < SHORT_SHARE:
            opening, said = SHORT_OPENING, answer
        else:
            opening, said = rng.choice(OPENINGS), sentence(question, answer)
        asked = self.encode(f"{opening}{question}<|im_end|>\n<|im_start|>assistant\n")
        return asked, self.encode(f"{said}<|im_end|>")

    def batch(self, rooms: list[Room], count: int, rng: random.Random) -> dict[str, torch.Tensor]:
        """ids, labels (-100 where nothing is learnt), positions (3, ...), mask (rooms, 1, length, length)."""
        import torch

        rows = []
        for room in rooms:
            weights = [weight(question) for question, _ in room.questions]
            drawn = rng.sample(room.questions, min(count, sum(weights)), counts=weights)
            rows.append([self.branch(question, answer, rng) for question, answer in drawn])
        start = len(self.head)
        length = start + max(sum(len(asked) + len(said) for asked, said in row) for row in rows)
        ids = torch.full((len(rows), length), self.tokenizer.pad_token_id)
        labels = torch.full((len(rows), length), -100)
        owner = torch.full((len(rows), length), -1)  # 0: the pictures, 1...: branches
        positions = torch.zeros((3, len(rows), length), dtype=torch.long)
        ids[:, :start], owner[:, :start], positions[:, :, :start] = self.head, 0, self.positions[:, None]
        for i, row in enumerate(rows):
            at = start
            for number, (asked, said) in enumerate(row, 1):
                end = at + len(asked) + len(said)
                ids[i, at:end] = torch.tensor(asked + said)
                labels[i, at + len(asked) : end] = torch.tensor(said)
                owner[i, at:end] = number
                positions[:, i, at:end] = torch.arange(self.next, self.next + end - at)
                at = end
        own = (owner[:, :, None] == owner[:, None, :]) | (owner[:, None, :] == 0)
        mask = own & torch.ones(length, length, dtype=torch.bool).tril()
        return {"ids": ids, "labels": labels, "positions": positions, "mask": mask[:, None]}

    def loss(self, model: Any, batch: dict[str, torch.Tensor], seen: tuple[Any, Any]) -> torch.Tensor:
        """Mean cross-entropy of the answers' tokens."""
        from torch.nn import functional

        visual = batch["ids"] == self.image
        text = model.model.language_model
        embeddings = text.embed_tokens(batch["ids"])
        embeddings = embeddings.masked_scatter(visual[..., None].expand_as(embeddings), seen[0])
        hidden = text(
            inputs_embeds=embeddings,
            position_ids=batch["positions"],
            attention_mask=batch["mask"],
            visual_pos_masks=visual,
            deepstack_visual_embeds=seen[1],
            use_cache=False,
        ).last_hidden_state
        targets = batch["labels"][:, 1:]
        kept = targets != -100
        return functional.cross_entropy(model.lm_head(hidden[:, :-1][kept]), targets[kept])


class Captions:
    """The words of each visual token, read off it by likeness to the words' own embeddings."""

    def __init__(self, model: Any, tokenizer: Qwen2Tokenizer, rooms: list[Room]) -> None:
        import numpy as np
        import torch

        self.embeddings = model.get_input_embeddings()
        self.turn = rotation(self.embeddings.weight.shape[1]).T
        words = label_words()
        self.mean = torch.zeros(len(words), self.embeddings.weight.shape[0])
        for i, word in enumerate(words):
            pieces = tokenizer(f" {word}", add_special_tokens=False).input_ids
            self.mean[i, pieces] = 1 / len(pieces)
        self.scale = torch.nn.Parameter(torch.tensor(8.0))
        self.bias = torch.nn.Parameter(torch.full((len(words),), -3.0))
        share = np.mean([room.words.reshape(-1, len(words)).mean(0) for room in rooms], 0) + 1e-4
        weights = share**-0.6  # rare words, which are the furniture, would drown among walls and floors
        self.weights = torch.tensor(weights / (weights * share).sum() * share.sum(), dtype=torch.float32)

    def loss(self, features: torch.Tensor, rooms: list[Room]) -> torch.Tensor:
        """Weighted binary cross-entropy, summed over about a quarter of the words."""
        import numpy as np
        import torch
        from torch.nn import functional

        words = torch.from_numpy(np.concatenate([room.words for room in rooms])).flatten(0, 1).float()
        named = functional.normalize(self.mean @ self.embeddings.weight @ self.turn, dim=-1)
        logits = functional.normalize(features, dim=-1) @ named.T * self.scale + self.bias
        each = functional.binary_cross_entropy_with_logits(logits, words, reduction="none")
        return (each * self.weights).mean() * words.shape[-1] / 4


def lesson_plan(steps: int, frames: int) -> list[tuple[int, int, int]]:
    """(rooms, pictures of a room, questions of a room) of each step."""
    plan: list[tuple[int, int, int]] = []
    until = 0.0
    for share, rooms, shown, asked in LESSONS:
        until += share
        plan += [(rooms, min(shown or frames, frames), asked)] * (round(until * steps) - len(plan))
    return plan


def glance(room: Room, shown: int, rng: random.Random) -> Room:
    """The room with `shown` of its pictures, in their order."""
    if shown == len(room.pictures):
        return room
    kept = sorted(rng.sample(range(len(room.pictures)), shown))
    return Room(room.pictures[kept], room.words[kept], room.questions)


def pretrain(
    model: Qwen3VLForConditionalGeneration,
    processor: Qwen3VLProcessor,
    seed: int,
    steps: int,
    frames: int,
    max_pixels: int,
) -> dict[str, Any]:
    """Train all weights of `model` in place.

    Args:
        seed: of weights, rooms and order.
        steps: optimizer steps, >= 1.
        frames: pictures of a room, config `frames.count`.
        max_pixels: config `vision.image_max_pixels`.
    Returns:
        rooms, and the mean losses of the last steps.
    """
    import numpy as np
    import torch

    rooms = look_at_rooms(min(ROOMS, 3 * steps), seed, frames, max_pixels)
    initialise(model, seed)
    height, width = rooms[0].pictures.shape[1:3]
    grid = (height // TOKEN_SIDE_PX, width // TOKEN_SIDE_PX)
    plan = lesson_plan(steps, frames)
    lessons = {shown: Lessons(model, processor.tokenizer, shown, grid) for shown in {lesson[1] for lesson in plan}}
    captions = Captions(model, processor.tokenizer, rooms)
    matrices, others = [], []
    for name, weight in model.named_parameters():
        # the large ones of the mergers cost Muon as much as all others together
        plain = weight.ndim != 2 or "embed" in name or min(weight.shape) > model.config.text_config.hidden_size
        (others if plain else matrices).append(weight)
    muon = Muon(matrices)
    adam = torch.optim.AdamW(
        [{"params": others, "weight_decay": 0.01}, {"params": [captions.scale, captions.bias], "weight_decay": 0.0}],
        betas=(0.9, 0.98),
    )
    rng = random.Random(f"order {seed}")
    losses: list[tuple[float, float]] = []
    model.train()
    for step in track(range(steps), "steps"):
        cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
        rate = LEARNING_RATE * min(1.0, (step + 1) / WARMUP_STEPS) * (0.03 + 0.97 * cosine)
        adam.param_groups[0]["lr"], adam.param_groups[1]["lr"] = rate, rate * 5
        count, shown, asked = plan[step]
        drawn = [glance(room, shown, rng) for room in rng.sample(rooms, min(count, len(rooms)))]
        seen = see(model.model.visual, np.concatenate([room.pictures for room in drawn]))
        caption, answer = captions.loss(seen[0], drawn), torch.zeros(())
        if asked:
            answer = lessons[shown].loss(model, lessons[shown].batch(drawn, asked, rng), seen)
        model.zero_grad(set_to_none=True)
        adam.zero_grad(set_to_none=True)
        (caption + answer).backward()
        torch.nn.utils.clip_grad_norm_([*model.parameters()], 1.0)
        adam.step()
        muon.step(rate * MUON_FACTOR)
        losses.append((caption.item(), answer.item()))
        if (step + 1) % 50 == 0:
            recent = np.mean(losses[-50:], 0)
            log.info("step %d of %d: captions %.3f, answers %.3f", step + 1, steps, *recent)
    model.eval()
    last = np.mean(losses[-50:], 0)
    return {"rooms": len(rooms), "caption_loss": round(float(last[0]), 4), "answer_loss": round(float(last[1]), 4)}
