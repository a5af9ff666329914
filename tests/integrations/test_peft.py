"""LoRA under ``SAMTrainer``: the frozen base costs nothing, and its weights stay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("peft")
pytest.importorskip("transformers")

import peft
import transformers
from integrations import hf

from optland.integrations.transformers import PilotCallback
from optland.optim import SAM
from optland.pilot.host import unwrapped
from optland.train import PrecisionConfig

VOCABULARY = 16


def language_model(dropout: float = 0.0):
    """A tiny Llama from its configuration, with adapters."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16, pad_token_id=0,
    )  # fmt: skip
    base = transformers.LlamaForCausalLM(config)
    lora = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], lora_dropout=dropout)
    return peft.get_peft_model(base, lora)


def texts(num: int = 44):
    """Sequences; the first tokens of some are no targets."""
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(1, VOCABULARY, (num, 8), generator=g)
    labels = ids.clone()
    for k, row in enumerate(labels):
        row[: k % 5] = -100
    return [{"input_ids": a, "labels": b} for a, b in zip(ids, labels, strict=True)]


def plain(model, accumulation: int):
    """Micro-batches of four, divided by the tokens that are predicted in the update, in float32."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = SAM(torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0), rho=0.1, model=model)
    samples = texts()
    model.train()
    for i in range(0, len(samples), 4 * accumulation):
        chunk = samples[i : i + 4 * accumulation]
        parts = [hf.stacked(chunk[j : j + 4]) for j in range(0, len(chunk), 4)]
        items = sum((p["labels"][:, 1:] != -100).sum() for p in parts)
        for _ in optimizer.passes():
            for part in parts:
                model(**part, num_items_in_batch=items).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.cell("PEFT", "SAM phase")
@pytest.mark.cell("PEFT", "accumulation")
@pytest.mark.parametrize("accumulation", [1, 3])
def test_lora_is_the_plain_loop_over_the_adapters(tmp_path: Path, accumulation: int) -> None:
    model, expected = language_model(), language_model()
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    trainer = hf.trainer(
        tmp_path, model, samples=texts(), rho=0.1, lr_scheduler_type="constant", weight_decay=0.0,
        gradient_accumulation_steps=accumulation,
    )  # fmt: skip
    trainer.train()
    plain(expected, accumulation)
    for (name, p), q in zip(model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6, msg=name)
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)


@pytest.mark.cell("PEFT", "SAM closure")
@pytest.mark.cell("PEFT", "scheduler")
@pytest.mark.cell("PEFT", "clip")
def test_closures_of_a_plain_loop_move_the_adapters_alone() -> None:
    """Equal to the phase form with its own arithmetic of the clipping; the schedule's rate is what was applied."""
    ends = []
    for form in ("closures", "phases"):
        model = language_model()
        model.train()
        trained = [p for p in model.parameters() if p.requires_grad]
        frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
        base = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
        optimizer = SAM(base, rho=0.1, model=model)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
        clip = PrecisionConfig(clip=0.01).build(optimizer)
        for k in range(0, 40, 4):
            batch = hf.stacked(texts()[k : k + 4])

            def closure(model=model, optimizer=optimizer, batch=batch):
                optimizer.zero_grad()
                loss = model(**batch).loss
                loss.backward()
                return loss

            if form == "closures":
                clip.step(closure)
            else:
                optimizer.zero_grad()
                for _ in optimizer.passes():
                    model(**batch).loss.backward()
                optimizer.restore()
                length = torch.cat([p.grad.flatten() for p in trained]).norm()
                for p in trained:
                    p.grad *= min(1.0, 0.01 / float(length))
                optimizer.step()
            assert base.param_groups[0]["lr"] == pytest.approx(1e-2 * 0.8 ** (k // 4))
            schedule.step()
        assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)
        ends.append([p.detach().clone() for p in trained])
    for p, q in zip(*ends, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_the_frozen_base_is_neither_copied_nor_in_the_state(tmp_path: Path) -> None:
    """What stands aside during pass two is the trained part, in numbers of parameters."""
    model = language_model()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    aside = []

    class Watch(transformers.TrainerCallback):
        def on_train_begin(self, args, state, control, optimizer, **kwargs):
            sam = unwrapped(optimizer)

            def look(module, args):
                if sam.is_perturbed:
                    aside.append(sum(w.numel() for w in sam._flight.ascent.weights))

            model.register_forward_pre_hook(look)

    trainer = hf.trainer(tmp_path, model, samples=texts(8), rho=0.1, callbacks=[Watch()])
    trainer.train()
    assert set(aside) == {trained}
    assert sum(p.numel() for g in trainer.optimizer.param_groups for p in g["params"]) == trained
    assert trained < 0.1 * sum(p.numel() for p in model.parameters())


@pytest.mark.cell("PEFT", "pilot control")
@pytest.mark.cell("PEFT", "pilot monitor")
@pytest.mark.cell("PEFT", "resume")
@pytest.mark.parametrize("mode", ["monitor", "control"])
def test_a_piloted_adapter_resumes_bit_for_bit(tmp_path: Path, mode: str) -> None:
    ends = []
    for start in (None, str(tmp_path / "a" / "checkpoint-6")):
        model = language_model(dropout=0.1)
        callback = PilotCallback(mode=mode, budget=0.2)
        trainer = hf.trainer(
            tmp_path / "a", model, samples=texts(), rho=0.1, save_strategy="no" if start else "steps", save_steps=6,
            callbacks=[callback],
        )  # fmt: skip
        trainer.train(start)
        ends.append([p.detach().clone() for p in model.parameters() if p.requires_grad])
        assert callback.pilot.step == 11
    assert all(torch.equal(p, q) for p, q in zip(*ends, strict=True))
    assert any(bool((p != 0).any()) for p in ends[0])


@pytest.mark.cell("HF Trainer", "own wandb run")
def test_rows_go_into_the_users_wandb_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, through ``report_to``: what the trainer logs and what the pilot logs, in one history."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    # wandb reads its variables once per process, so the mode is said here too.
    run = wandb.init(project="mine", dir=str(tmp_path), mode="offline")
    try:
        trainer = hf.trainer(
            tmp_path, hf.Net(), rho=0.1, report_to="wandb", logging_steps=4,
            callbacks=[PilotCallback(mode="monitor")],
        )  # fmt: skip
        trainer.train()
        summary = dict(run.summary)
    finally:
        run.finish()
    assert wandb.run is None
    assert summary["train/global_step"] == 22
    assert summary["train/loss"] > 0
    assert summary["train/optland/train/loss"] > 0
    assert summary["train/optland/step"] == 20
