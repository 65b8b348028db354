"""Rendered scenes with exact masks, drawn by a seed: the game crafter, and clothes or digits pasted over pictures.

Nothing is downloaded; the pieces come from packages. Crafter's frames are kept in the cache folder, the others are quick.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import check_count
from ..data import Data, MissingData, Splits
from .rendered import PARTS, array_splits, check_parts, kept, needed

__all__ = ["CRAFTER_CLASSES", "crafter", "digit_scenes", "fashion_scenes", "frames"]

OBJECTS = ("player", "cow", "zombie", "skeleton", "arrow", "plant")
MATERIALS = ("water", "grass", "stone", "path", "sand", "tree", "lava", "coal", "iron", "diamond", "table", "furnace")
CRAFTER_CLASSES = ("outside", *MATERIALS, *OBJECTS)
"""What a cell of crafter can show, in the order of the game's own numbers; outside is past the edge of the world."""

COLUMNS, ROWS = 9, 7
"""Cells of crafter's view of the world; two more rows of the game's picture show pockets, and are cut off."""

STRETCHES, STEPS = 14, 10
"""Frames of an episode, and steps before each. All are by day: from step 148 on, crafter draws the dark as noise."""

ACTIONS = {"move_left": 18, "move_right": 18, "move_up": 18, "move_down": 18, "do": 16}
ACTIONS |= {"place_stone": 4, "place_plant": 4, "place_table": 2, "place_furnace": 2}
"""How often the player does what, in percent."""

PHOTOGRAPHS = {
    "train": (("sklearn", "images/china.jpg"), ("skimage", "astronaut.png"), ("skimage", "motorcycle_left.png")),
    "val": (("skimage", "chelsea.png"),),
    "test": (("sklearn", "images/flower.jpg"), ("skimage", "coffee.png"), ("skimage", "rocket.jpg")),
}
"""Packages and files of the photographs behind the scenes of every part, which have none in common."""

FOLDERS = {"sklearn": "datasets", "skimage": "data"}
BATCH = 256


def crafter(
    root: str | os.PathLike[str] | None = None,
    *,
    sizes: tuple[int, int, int] = (600, 100, 200),
    seed: int = 0,
    size: int = 144,
) -> Splits:
    """Frames of the game crafter, ``(3, 7 size / 9, size)``, with the class of every cell of ``size / 9`` pixels.

    The player is put on a cell drawn by the seed, with full pockets so that tables, furnaces and plants come to be, makes
    10 steps drawn by the seed, and the frame is taken; 14 frames, all by day, are an episode. Every episode is a world of
    its own, and no two parts share one. A cell that something stands on has the class of what stands on it. The masks are
    the game's own map, and so exact. Frames depend on the seed and the release of crafter, not on how many there are.

    Parameters
    ----------
        root: None, since frames are rendered. sizes: frames for train, val and test. seed: of all draws. size: columns of a
        frame, a multiple of 9; rows are 7/9 of it.

    Raises
    ------
        MissingData where crafter is not installed; ValueError for a root, a size that is not a multiple of 9 or below 18,
        and for parts that are not three counts of at least 1.
    """
    check_rootless("crafter", root)
    check_parts("crafter", sizes, seed)
    check_count("crafter", "size", size, 2 * COLUMNS)
    if size % COLUMNS:
        raise ValueError(
            f"crafter: size must be a multiple of {COLUMNS}, so that cells are whole pixels, but is {size};"
            f" {size - size % COLUMNS} is one."
        )
    game = needed("crafter", "crafter", "crafter")
    unit = size // COLUMNS

    def render() -> dict[str, Tensor]:
        from tqdm import tqdm

        found = {}
        with tqdm(total=sum(sizes), desc="crafter", unit="frame", disable=None) as bar:
            for number, (part, count) in enumerate(zip(PARTS, sizes, strict=True)):
                images = np.empty((count, ROWS * unit, size, 3), np.uint8)
                cells = np.empty((count, ROWS, COLUMNS), np.uint8)
                for index, (image, classes) in zip(range(count), frames(game, seed, number, size), strict=False):
                    images[index], cells[index] = image, classes
                    bar.update()
                found[f"{part}.images"] = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
                found[f"{part}.masks"] = torch.from_numpy(cells.repeat(unit, 1).repeat(unit, 2))
        return found

    release = importlib.metadata.version("crafter")
    # The 1 is the version of this rendering: raise it with every change of what frames yields.
    name = f"crafter-{release}-1-{'-'.join(map(str, sizes))}-{size}-{seed}"
    shapes: dict[str, tuple[int, ...]] = {}
    for part, count in zip(PARTS, sizes, strict=True):
        shapes[f"{part}.images"] = (count, 3, ROWS * unit, size)
        shapes[f"{part}.masks"] = (count, ROWS * unit, size)
    return array_splits("crafter", kept(name, render, shapes), CRAFTER_CLASSES, 16)


def episode_seed(seed: int, part: int, episode: int) -> int:
    """A number of its own for every episode of every part, at less than 100,000 episodes a part.

    >>> episode_seed(0, 0, 1), episode_seed(0, 1, 1), episode_seed(1, 0, 0)
    (3, 4, 300000)
    """
    return 3 * (100_000 * seed + episode) + part


def frames(game: ModuleType, seed: int, part: int, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Frames ``(7 unit, 9 unit, 3)`` and the classes of their cells ``(7, 9)``, without end."""

    class Game(game.Env):  # type: ignore[name-defined]
        def _balance_chunk(self, chunk: Any, things: Any) -> None:
            # The game draws from a set, whose order is that of addresses in memory; the draw has to be the seed's alone.
            super()._balance_chunk(chunk, sorted(things, key=lambda thing: tuple(thing.pos)))

    names = list(game.constants.actions)
    actions, weights = [names.index(name) for name in ACTIONS], np.array(list(ACTIONS.values())) / 100
    episode = 0
    while True:
        number = episode_seed(seed, part, episode)
        rng = np.random.default_rng(number)
        game_ = Game(size=(2 * COLUMNS, 2 * COLUMNS), seed=number)  # small, since every step renders
        check_classes(game_)
        game_.reset()
        info = game_.step(names.index("noop"))[3]
        for _ in range(STRETCHES):
            grounds = [np.argwhere(info["semantic"] == CRAFTER_CLASSES.index(name)) for name in game.constants.walkable]
            cells = [cells for cells in grounds if len(cells)]
            ground = cells[rng.integers(len(cells))]
            game_._world.move(game_._player, ground[rng.integers(len(ground))])
            game_._player.inventory.update(dict.fromkeys(game_._player.inventory, 9))
            for action in rng.choice(actions, STEPS, p=weights):
                info = game_.step(action)[3]
            x, y = info["player_pos"]
            around = np.pad(info["semantic"], COLUMNS // 2)
            left, top = x, y + COLUMNS // 2 - ROWS // 2
            classes = around[left : left + COLUMNS, top : top + ROWS]
            yield game_.render((size, size))[: ROWS * size // COLUMNS], classes.transpose()
        episode += 1


def check_classes(game: Any) -> None:
    """Raise unless this release of crafter numbers what its cells show as CRAFTER_CLASSES does."""
    view = game._sem_view
    named = {number: name or "outside" for name, number in view._mat_ids.items()}
    named |= {number: kind.__name__.lower() for kind, number in view._obj_ids.items()}
    found = tuple(named[number] for number in sorted(named))
    if found != CRAFTER_CLASSES:
        raise ValueError(
            f"crafter: this release shows {found}, but {CRAFTER_CLASSES} is expected; install crafter 1.8.3."
        )


def fashion_scenes(
    root: str | os.PathLike[str] | None = None,
    *,
    sizes: tuple[int, int, int] = (6000, 500, 1000),
    seed: int = 0,
    size: int = 64,
) -> Splits:
    """One to four of Fashion-MNIST's clothes over a photograph, ``(3, size, size)``, with the class of every pixel.

    Clothes are scaled by 0.6 to 1.4, flipped, tinted and pasted one over the other. The mask has a garment's label plus 1
    where its silhouette, holes filled, covers more than half of the pixel, 0 elsewhere. Clothes of a part are those of
    Fashion-MNIST's part of that name. The photographs of train and test differ, and val's too where scikit-image is
    installed. Scenes are the same for the same seed and the same photographs.

    Parameters
    ----------
        root: folder of Fashion-MNIST, where it is not installed. sizes: scenes for train, val and test. seed: of all draws.
        size: rows and columns, from 16 to 256.

    Raises
    ------
        MissingData where Fashion-MNIST or photographs are not installed; ValueError for other sizes.
    """
    check_parts("fashion_scenes", sizes, seed)
    check_side("fashion_scenes", size)
    from .classification import fashion_mnist

    behind = [crops(photographs("fashion_scenes", part), size) for part in PARTS]
    items = fashion_mnist(root)
    return composed("fashion-scenes", items, behind, sizes, seed, size, clothes=True, patch=8)


def digit_scenes(
    root: str | os.PathLike[str] | None = None,
    *,
    sizes: tuple[int, int, int] = (2000, 300, 500),
    seed: int = 0,
    size: int = 32,
) -> Splits:
    """One to four of scikit-learn's digits over smooth coloured noise, ``(3, size, size)``, with every pixel's class.

    Small and quick, for trials and tests. Digits are scaled by 0.6 to 1.4 and tinted, brighter than the noise. The mask has
    a digit plus 1 where its stroke covers more than half of the pixel, 0 elsewhere. No two parts have a digit in common.

    Parameters
    ----------
        root: None, since scikit-learn holds the digits. sizes: scenes for train, val and test. seed: of all draws. size:
        rows and columns, from 16 to 256.

    Raises
    ------
        MissingData where scikit-learn is not installed; ValueError for a root, and for other sizes.
    """
    check_rootless("digit_scenes", root)
    check_parts("digit_scenes", sizes, seed)
    check_side("digit_scenes", size)
    from .classification import digits

    return composed("digit-scenes", digits(), [noise(size)] * 3, sizes, seed, size, clothes=False, patch=4)


def check_rootless(owner: str, root: object) -> None:
    """Raise unless there is no root."""
    if root is not None:
        raise ValueError(f"{owner}: is rendered and reads no folder; leave root out, which is {str(root)!r}.")


def check_side(owner: str, size: object) -> None:
    """Raise unless pictures have a side of 16 to 256, which all photographs exceed."""
    check_count(owner, "size", size, 16)
    if isinstance(size, int) and size > 256:
        raise ValueError(f"{owner}: size must be at most 256, but is {size}.")


Behind = Callable[[np.random.Generator, int], Tensor]
"""Draws so many pictures ``(count, 3, size, size)`` in [0, 1]."""


def photographs(owner: str, part: str) -> list[Tensor]:
    """Photographs ``(3, H, W)`` in uint8 for the scenes of one part; val has train's where it would have none.

    Raises
    ------
        MissingData where neither scikit-learn nor scikit-image is installed.
    """
    from PIL import Image

    found = []
    for package, name in PHOTOGRAPHS[part]:
        # Not imported: one is slow, and the other would download what it lacks.
        spec = importlib.util.find_spec(package)
        path = Path(spec.origin).parent / FOLDERS[package] / name if spec is not None and spec.origin else None
        if path is not None and path.is_file():
            with Image.open(path) as picture:
                found.append(torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1))
    if not found and part == "val":
        return photographs(owner, "train")
    if not found:
        raise MissingData(
            f"{owner}: there are no photographs; install some with: pip install scikit-learn scikit-image."
        )
    return found


def crops(pictures: Sequence[Tensor], size: int) -> Behind:
    """Random squares of these pictures and of their halves, quarters … as far as they are large enough, flipped or not."""
    views = []
    for picture in pictures:
        view = picture.float() / 255
        while min(view.shape[1:]) >= size:
            views.append(view)
            view = F.avg_pool2d(view, 2)

    def draw(rng: np.random.Generator, count: int) -> Tensor:
        out = torch.empty(count, 3, size, size)
        for index, number in enumerate(rng.integers(len(views), size=count)):
            top, left = (int(rng.integers(side - size + 1)) for side in views[number].shape[1:])
            cut = views[number][:, top : top + size, left : left + size]
            out[index] = cut.flip(2) if rng.random() < 0.5 else cut
        return out

    return draw


def noise(size: int) -> Behind:
    """Smooth coloured noise of two scales, in the darker half."""

    def draw(rng: np.random.Generator, count: int) -> Tensor:
        out = torch.zeros(count, 3, size, size)
        for cells, share in ((3, 0.35), (8, 0.15)):
            coarse = torch.from_numpy(rng.random((count, 3, cells, cells), dtype=np.float32))
            out += share * F.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=True)
        return out

    return draw


def silhouettes(items: Tensor) -> Tensor:
    """Where items ``(count, 1, h, w)`` in [0, 1] are brighter than 0.1, and what such pixels enclose: 1, elsewhere 0."""
    from scipy.ndimage import binary_fill_holes

    cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]])[None]  # within each image, not across
    filled = binary_fill_holes(items[:, 0].numpy() > 0.1, structure=cross)
    return torch.from_numpy(filled).float()[:, None]


def composed(
    name: str,
    items: Splits,
    behind: Sequence[Behind],
    sizes: tuple[int, int, int],
    seed: int,
    size: int,
    *,
    clothes: bool,
    patch: int,
) -> Splits:
    """Scenes of every part, of that part's items only."""
    made = {}
    for number, (part, data, count) in enumerate(zip(PARTS, (items.train, items.val, items.test), sizes, strict=True)):
        rng = np.random.default_rng((seed, number))
        images, masks, _ = scenes(data, behind[number], rng, count, size, clothes=clothes)
        made[f"{part}.images"], made[f"{part}.masks"] = images, masks
    return array_splits(name, made, ("background", *items.train.classes), patch)


def scenes(
    data: Data, behind: Behind, rng: np.random.Generator, count: int, size: int, *, clothes: bool, most: int = 4
) -> tuple[Tensor, Tensor, Tensor]:
    """Scenes ``(count, 3, size, size)``, masks ``(count, size, size)``, labels of the first items, of this data set.

    An item of side s about a centre c is read at ``(p − c) 2 / s``, p a pixel's place in the scene, so that scaling,
    flipping and placing are one bilinear sampling of all scenes at once.
    """
    many, picked = rng.integers(1, most + 1, count), rng.integers(len(data), size=(count, 4))
    used, where = np.unique(picked, return_inverse=True)
    images, labels = data.load_many(used.tolist())
    items, label = torch.stack(images)[:, :1].float() / 255, torch.stack(labels).to(torch.uint8) + 1
    shape = silhouettes(items) if clothes else (items > 0.5).float()
    items = torch.cat((shape, shape * (0.25 + 0.75 * items)), dim=1)
    which = torch.from_numpy(where.reshape(count, 4))

    def drawn(low: float, high: float, *more: int) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (count, 4, *more)).astype(np.float32))

    stretch = 1 / (28 / 64 * drawn(0.6, 1.4))  # of a scene's side by an item's
    shift = stretch[..., None] * drawn(-0.6, 0.6, 2)
    mirror = 1 - 2 * torch.from_numpy(rng.integers(2, size=(count, 4))).float() if clothes else torch.ones(count, 4)
    tint = drawn(0.1, 1.0, 3)
    tint = (tint / tint.amax(2, keepdim=True))[..., None, None]
    place = torch.zeros(count, 4, 2, 3)
    place[..., 0, 0], place[..., 0, 2] = mirror * stretch, -mirror * shift[..., 0]
    place[..., 1, 1], place[..., 1, 2] = stretch, -shift[..., 1]

    out = torch.empty(count, 3, size, size, dtype=torch.uint8)
    masks = torch.zeros(count, size, size, dtype=torch.uint8)
    for start in range(0, count, BATCH):
        now = slice(start, min(start + BATCH, count))
        scene, mask = behind(rng, now.stop - start), masks[now]
        for turn in range(4):
            grid = F.affine_grid(place[now, turn], [now.stop - start, 2, size, size], align_corners=False)
            drawing = F.grid_sample(items[which[now, turn]], grid, align_corners=False)
            drawing = drawing * torch.from_numpy(many[now] > turn)[:, None, None, None]
            cover, shade = drawing[:, :1], drawing[:, 1:]
            scene = (1 - cover) * scene + shade * tint[now, turn]
            mask[:] = torch.where(cover[:, 0] > 0.5, label[which[now, turn]][:, None, None], mask)
        out[now] = (255 * scene).round().clamp(0, 255).to(torch.uint8)
    return out, masks, label[which[:, 0]].long() - 1
