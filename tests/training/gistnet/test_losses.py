import torch
from torch.nn.functional import cross_entropy, kl_div

from megacontext_vllm.training.gistnet.losses import ROWS_AT_ONCE, ContrastiveHead, head_loss, hidden_loss


def test_value_and_gradient_are_those_of_the_plain_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    n = ROWS_AT_ONCE + 37
    student = torch.randn(n, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(n, 16, generator=generator, dtype=torch.float64)
    weight = torch.randn(50, 16, generator=generator, dtype=torch.float64)
    ids = torch.randint(0, 50, (n,), generator=generator)
    loss = head_loss(student, teacher, ids, lambda h: h @ weight.T, 0.7, 0.4)
    (loss * 3).backward()
    plain = student.detach().clone().requires_grad_()
    q, p = (plain @ weight.T).log_softmax(-1), (teacher @ weight.T).log_softmax(-1)
    expected = 0.7 * kl_div(q, p, log_target=True, reduction="batchmean") + 0.4 * cross_entropy(plain @ weight.T, ids)
    (expected * 3).backward()
    torch.testing.assert_close(loss.double(), expected.detach(), atol=1e-5, rtol=1e-5)
    assert student.grad is not None and plain.grad is not None
    torch.testing.assert_close(student.grad, plain.grad)


def test_no_teacher_is_needed_for_the_likelihood_alone() -> None:
    student = torch.randn(5, 4, requires_grad=True)
    head_loss(student, None, torch.arange(5), lambda h: h @ torch.eye(4, 9), 0.0, 1.0).backward()
    assert student.grad is not None and student.grad.abs().sum() > 0


def test_nothing_is_lost_where_student_and_teacher_agree() -> None:
    states = torch.randn(6, 8)
    assert float(head_loss(states, states, torch.zeros(6).long(), lambda h: h, 1.0, 0.0)) < 1e-6
    assert float(hidden_loss(states, 3 * states)) < 1e-5
    both = torch.cat([states, -states])  # their mean is 0, so that the negative is the opposite
    assert abs(float(hidden_loss(both, -both)) - 20) < 1e-4


def test_hidden_states_are_told_apart_by_more_than_what_they_all_have_in_common() -> None:
    teacher = torch.randn(200, 32, generator=torch.Generator().manual_seed(0))
    teacher[:, 0] += 500
    near = teacher + 0.1 * torch.randn(200, 32, generator=torch.Generator().manual_seed(1))
    assert float(hidden_loss(teacher.roll(1, 0), teacher)) > 8 and float(hidden_loss(near, teacher)) < 0.5


def test_a_gist_that_points_at_its_own_block_has_the_smaller_contrastive_loss() -> None:
    states = torch.randn(10, 8, generator=torch.Generator().manual_seed(0))
    head = ContrastiveHead(8)
    assert float(head(states - states.mean(0), states).detach()) < float(head(states.roll(1, 0), states).detach()) - 1
