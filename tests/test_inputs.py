import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from proofs_check.inputs import WIDTH, InputError, default_image, from_image, from_tokens


def test_the_photograph_becomes_tokens_of_mean_squared_norm_one():
    source = from_image(default_image())
    assert source.tokens.shape == (37 * 32, WIDTH)
    assert source.grid == (37, 32)
    assert (source.tokens**2).sum(1).mean() == pytest.approx(1)
    np.testing.assert_allclose(source.tokens.mean(0), 0, atol=1e-12)


def test_an_image_of_another_shape_keeps_its_grid(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (50, 130, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    source = from_image(tmp_path / "wide.png")
    assert source.grid == (3, 8)
    assert source.image.shape == (48, 128, 3)


def write_pickle(path):
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


@pytest.mark.parametrize(
    ("name", "write", "said"),
    [
        ("gone.npy", lambda path: None, "no such file"),
        ("empty.npy", lambda path: path.touch(), "the file is empty"),
        ("corrupt.npy", lambda path: path.write_bytes(b"not an array"), "cannot be read as .npy"),
        ("corrupt.npz", lambda path: path.write_bytes(b"PK not a zip"), "not an .npz archive"),
        ("corrupt.safetensors", lambda path: path.write_bytes(b"x" * 40), "cannot be read as .safetensors"),
        ("pickled.npy", write_pickle, "Pickled arrays are refused"),
        ("pickled.npz", lambda path: np.savez(path, tokens=np.array([{"a": 1}])), "Pickled arrays are refused"),
        ("cube.npy", lambda path: np.save(path, np.ones((2, 3, 4))), r"must be \(tokens, dim\).*\(2, 3, 4\)"),
        ("none.npy", lambda path: np.save(path, np.ones((0, 4))), "not empty"),
        ("words.npy", lambda path: np.save(path, np.array([["a"]])), "must be real numbers"),
        (
            "nan.npy",
            lambda path: np.save(path, np.array([[1.0, np.nan]])),
            "1 of 2 entries are NaN or infinite",
        ),
        ("equal.npy", lambda path: np.save(path, np.ones((5, 4))), "all tokens are equal"),
        (
            "two.npz",
            lambda path: np.savez(path, a=np.eye(2), b=np.eye(2)),
            "save the one to use under the name 'tokens'",
        ),
        ("tokens.txt", lambda path: path.write_text("1 2"), "tokens come in .npy, .npz or .safetensors"),
    ],
)
def test_bad_token_files_get_a_clear_error(tmp_path, name, write, said):
    path = tmp_path / name
    write(path)
    with pytest.raises(InputError, match=said):
        from_tokens(path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jpg", b"", "the file is empty"),
        ("b.jpg", b"no image", "not a readable image"),
        ("c.jpg", None, "no such file"),
    ],
)
def test_bad_images_get_a_clear_error(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said):
        from_image(tmp_path / name)


def test_a_truncated_image_gets_a_clear_error(tmp_path):
    whole = default_image().read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not a readable image"):
        from_image(tmp_path / "half.jpg")


def test_an_image_too_small_gets_a_clear_error(tmp_path):
    Image.new("RGB", (20, 10)).save(tmp_path / "tiny.png")
    with pytest.raises(InputError, match="at least 2 are needed"):
        from_image(tmp_path / "tiny.png")


def test_all_three_formats_give_the_same_tokens(tmp_path):
    array = np.random.default_rng(0).standard_normal((30, 7)).astype(np.float32)
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", array)
    save_file({"features": array}, tmp_path / "a.safetensors")
    first, *others = (from_tokens(tmp_path / f"a{suffix}").tokens for suffix in (".npy", ".npz", ".safetensors"))
    for other in others:
        np.testing.assert_array_equal(first, other)


def test_many_wide_tokens_are_thinned_and_projected(tmp_path):
    np.save(tmp_path / "many.npy", np.random.default_rng(0).standard_normal((3000, 40)))
    source = from_tokens(tmp_path / "many.npy")
    assert source.tokens.shape == (1200, WIDTH)
    assert "1200 of 3000" in source.note


def test_sixteen_bits_a_pixel_are_not_all_white(tmp_path):
    ramp = np.linspace(300, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    image = from_image(tmp_path / "deep.png").image
    assert image.min() < 10
    assert len(np.unique(image)) > 200
