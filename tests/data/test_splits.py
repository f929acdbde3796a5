"""The files of a folder: by their own names, and in each of the layouts of the Hub."""

import pytest

from depthdial.data.splits import find_split, split_files
from depthdial.errors import InputError


def fill(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{"text": "a"}')
    return {split: [path.relative_to(folder).as_posix() for path in files] for split, files in split_files(folder).items()}


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["test.jsonl", "train.csv", "README.md", "dataset_infos.json"], {"test": ["test.jsonl"], "train": ["train.csv"]}),
        (["train.jsonl.gz", "dev.jsonl"], {"dev": ["dev.jsonl"], "train": ["train.jsonl.gz"]}),
        (["name_train.jsonl", "name_test.jsonl"], {"name_test": ["name_test.jsonl"], "name_train": ["name_train.jsonl"]}),
        (
            ["data/train-00001-of-00002.parquet", "data/train-00000-of-00002.parquet", "data/test-00000-of-00001.parquet"],
            {
                "test": ["data/test-00000-of-00001.parquet"],
                "train": ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
            },
        ),
        (
            ["data/train-00000-of-00001-a09b74b3ef9c3b56.parquet"],
            {"train": ["data/train-00000-of-00001-a09b74b3ef9c3b56.parquet"]},
        ),
        (["data/train_sft-00000-of-00001.parquet"], {"train_sft": ["data/train_sft-00000-of-00001.parquet"]}),
        (["train/0000.parquet", "train/0001.parquet"], {"train": ["train/0000.parquet", "train/0001.parquet"]}),
        (
            ["default/train/0000.parquet", "default/test/0000.parquet"],
            {"test": ["default/test/0000.parquet"], "train": ["default/train/0000.parquet"]},
        ),
        (["plain_text/partial-train/0000.parquet"], {"train": ["plain_text/partial-train/0000.parquet"]}),
        (["0000.parquet", "0001.parquet"], {"all": ["0000.parquet", "0001.parquet"]}),
        (["test.jsonl", "old/test.jsonl"], {"test": ["test.jsonl"]}),
        (["test/rows.jsonl", ".cache/train/rows.jsonl"], {"test": ["test/rows.jsonl"]}),
    ],
)
def test_layouts(tmp_path, names, splits):
    assert fill(tmp_path, *names) == splits


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.txt"], "holds no .* file: put in test.jsonl"),
        (["test.jsonl", "test.csv"], "two files for split 'test': keep one"),
        (["main/train-00000-of-00001.parquet", "socratic/train-00000-of-00001.parquet"], r"several sets \(main, socratic\)"),
        (["train-00000-of-00003.parquet", "train-00002-of-00003.parquet"], "lacks shard 1 of the 3 of split 'train'"),
        (["train-00000-of-00002.parquet", "train-00000-of-00002.jsonl"], "two files for split 'train'"),
    ],
)
def test_a_folder_that_cannot_be_told_apart_is_an_input_error(tmp_path, names, message):
    with pytest.raises(InputError, match=message):
        fill(tmp_path, *names)


def test_a_split_goes_by_any_of_its_words_where_one_file_has_one():
    assert find_split("validation", ["dev", "train"]) == "dev"
    assert find_split("train", ["name_train", "name_test"]) == "name_train"
    assert find_split("train", ["train_sft", "train_gen"]) is None
    assert find_split("questions", ["questions"]) == "questions"
