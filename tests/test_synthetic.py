import pytest
import torch

from benchbench.synthetic import tokens, training_batch


def test_a_seed_gives_the_same_tokens_everywhere():
    # Written down from torch 2.13.0 on x86-64, and the same from 2.11.0: torch's CPU generator is a Mersenne twister.
    assert tokens(1000, 2, 5, seed=7).tolist() == [[615, 892, 721, 286, 283], [347, 287, 279, 988, 761]]


def test_seeds_differ_and_the_global_generator_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first, second = tokens(1000, 2, 50, seed=0), tokens(1000, 2, 50, seed=1)

    assert not torch.equal(first, second)
    assert torch.equal(torch.rand(3), expected)


def test_every_token_of_the_vocabulary_and_no_other():
    # 5,000 draws miss one of 8 tokens with probability 8·(7/8)^5000 < 1e-280.
    found = tokens(8, 50, 100, seed=0)

    assert found.shape == (50, 100)
    assert found.dtype == torch.int64
    assert found.unique().tolist() == list(range(8))


def test_targets_are_the_tokens_shifted_by_one_in_a_tensor_of_their_own():
    drawn = tokens(1000, 3, 9, seed=4)
    read, targets = training_batch(1000, 3, 8, seed=4)

    assert torch.equal(read, drawn[:, :-1])
    assert torch.equal(targets, drawn[:, 1:])
    assert read.untyped_storage().nbytes() == targets.untyped_storage().nbytes() == 3 * 8 * 8


@pytest.mark.gpu
def test_the_gpu_gets_the_same_tokens():
    assert torch.equal(tokens(1000, 2, 50, seed=3, device="cuda").cpu(), tokens(1000, 2, 50, seed=3))
