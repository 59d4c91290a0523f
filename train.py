"""
Trains one language model with one optimizer, and writes the results into a folder.

    torchrun train.py --optimizer=signum                       two minutes on a laptop
    python train.py --optimizer=adamw --lr=3e-3 --name=mine    sets an option, and gives the run a name
    python train.py --name=mine --resume                       goes on where it stopped
    python train.py configs/150m.toml --optimizer=lion --plan  says what a run will take
    torchrun --nproc_per_node=8 train.py configs/150m.toml --optimizer=lion       eight GPUs
"""
import math
import os
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path

from trainer import script

if __name__ == "__main__":
    script.begin("train.py")

import torch
from tqdm import tqdm

import prepare_c4
import sample
import zoo
import zoo.table
from model import Decoder
from trainer import announce, data, plan, settings
from trainer.build import build_optimizer, decoder_shape, open_data
from trainer.errors import UserError, one_line
from trainer.machine import Machine, last_words, versions
from trainer.measure import (bits_per_byte, broken_gradient, broken_weight, checksum, draw_run, likely_cause,
                             look_into, sizes_of, unpromised, validation_losses)
from trainer.restore import checkpoint_of, resume_from, start_from
from trainer.runs import Run, SilentRun, checkpoint_path, checkpoints_of, load_checkpoint


class Training:
    """One run on one rank. __init__ prepares data, model, optimizer and folder. train() does the rest."""
    bar = tqdm(disable=True)    # there is none before the first step

    def __init__(self, config: settings.Settings, hyper: dict, tables: dict):
        self.machine = machine = Machine(config)
        if machine.rank > 0:
            sys.stdout = open(os.devnull, "w", errors="replace")    # rank 0 speaks for all
        config, why_precision, why_attention = machine.complete(config)
        self.config, self.tables, self.unpromised = config, tables, unpromised(config, hyper)
        self.in_force = settings.kept(config, hyper)
        self.micro_batch, self.accumulation = settings.split_batch(
            config.batch, config.micro_batch, machine.world, config.context)
        self.steps = config.freeze_steps + config.steps

        # the data
        if machine.rank == 0:
            prepare_c4.prepare_if_missing(config.data, config.prepare, config.data == settings.Settings.data)
        machine.sum(0)    # the others wait for rank 0
        self.fingerprint, self.train_set, self.val_set = open_data(config)
        self.order = data.Order(len(self.train_set), config.seed)
        settings.refuse_ranks_that_differ(machine.gather_tables(
            asdict(config) | self.in_force | dict(tokens=self.fingerprint)))

        # model and optimizer
        self.model = Decoder(**decoder_shape(config), seed=config.seed).to(machine.device)
        self.parameters = dict(self.model.named_parameters())
        self.optimizer = build_optimizer(self.model, config, hyper)
        if config.compile:
            self.model.compile_parts()
        self.ranked = self.model    # the model whose backward pass sums the gradients of all ranks
        if machine.world > 1:
            self.ranked = torch.nn.parallel.DistributedDataParallel(
                self.model, broadcast_buffers=False,
                gradient_as_bucket_view=True)    # otherwise each gradient exists twice
            script.NEVER_FREED.append(self.ranked)
        self.autocast = torch.autocast(machine.device.type, torch.bfloat16,
                                       enabled=config.precision == "bf16")
        self.environment = versions() | dict(device=machine.name(), threads=machine.threads,
                                             ranks=machine.world, micro_batch=self.micro_batch)
        announce.print_settings(config, hyper)
        announce.print_run(self, why_precision, why_attention)
        announce.print_optimizer(config, hyper, tables, self.optimizer)

        # where the run starts: at the beginning, with another run's weights, or at its own newest checkpoint
        has_checkpoint = config.resume and bool(checkpoints_of(Path(config.runs, config.name)))
        self.sequences_before = 0    # sequences read before the first step; above 0 with --continue_data
        if config.init_from and not has_checkpoint:
            self.sequences_before = start_from(self.model, self.optimizer, config, self.fingerprint)
        self.run, number, has_ended = SilentRun(), 0, False
        if machine.rank == 0:
            self.run = Run(config.runs, config.name, config.resume, config.overwrite)
            print(f"run        {self.run.folder}\n")
            number = 0 if config.name else int(self.run.folder.name)
            has_ended = config.resume and self.run.has_ended(self.steps)
        number, has_ended = machine.sum(number, int(has_ended))    # all ranks agree
        self.has_ended = has_ended > 0
        self.resume_command = announce.resume_command(config, config.name or f"{int(number):04d}")
        self.first_step = self.resume() if config.resume and not self.has_ended else 0
        self.stop = []    # signals since the first step; they take effect when the current step is done
        self.last_loss = None

    def resume(self) -> int:
        """Restores the newest checkpoint of this run. Returns its step, or 0 if there is none."""
        step, checkpoint = self.run.newest()
        step = int(self.machine.sum(step)[0])    # all ranks agree
        if not step:
            print("note: there is no checkpoint to resume from, so from the beginning")
            return 0
        path = checkpoint_path(Path(self.config.runs, self.config.name), step)
        self.sequences_before = resume_from(path, checkpoint or load_checkpoint(path), self.model,
                                            self.optimizer, self.in_force, self.fingerprint, self.environment)
        return step

    def train(self):
        """Each step: gradients, check, clip, lr, optimizer.step(), log; then save and validate when due."""
        config, machine, optimizer, first = self.config, self.machine, self.optimizer, self.first_step
        self.begin()
        for step in range(first + 1, self.steps + 1):
            if optimizer.wants_sampled():    # a rule of zoo/ needs gradients on labels that the model draws
                optimizer.sampled = self.sampled_gradients(step)
            mean_loss = self.gradients(step)
            total_norm = self.gradient_norm()
            loss, norm, stopped = machine.sum(mean_loss / machine.world, total_norm / machine.world,
                                              len(self.stop))    # the mean norm is not finite if any is
            self.refuse_a_broken_step(step, loss, norm, mean_loss)
            self.clip(total_norm)
            scale = settings.follow_schedule(config, step, optimizer.param_groups)
            is_logged = step % config.log_every == 0 or step in (1, self.steps)
            looks = is_logged and config.log_blocks and machine.rank == 0
            before = {p: p.detach().clone() for p in self.parameters.values()} if looks else None
            optimizer.step()
            if step == first + 1:    # Ctrl-C may stop a compiler; from now on a signal waits for the step
                script.on_signals(lambda number, frame: self.stop.append(number))
            self.bar.update()
            if is_logged:
                self.log(step, loss, norm, scale, before)
            self.model.zero_grad()    # also the gradients of untrained parameters
            if stopped:
                raise self.interrupted(step)
            if step == self.steps or config.save_every and step % config.save_every == 0:
                self.save(step)
            if config.eval_every and step % config.eval_every == 0 and step < self.steps:
                self.validate(step, config.eval_windows)
        self.bar.close()
        self.finish()

    def begin(self):
        """Writes what the run's folder holds before the first step, and validates if that is due."""
        first, every = self.first_step, self.config.eval_every
        is_due = bool(every) and 0 < first < self.steps and first % every == 0
        self.refuse_ranks_that_drift(first, "all machines must see the same files")
        self.run.write_config(self.in_force)
        self.run.rewind(first, self.in_force, is_due)
        if not first:
            self.run.log("config", 0, config=self.in_force, data=self.fingerprint, **sizes_of(self.model),
                         **self.environment)
        self.run.status("running", step=first, steps=self.steps)
        if self.config.compile:
            print(announce.COMPILING, flush=True)
        self.bar = tqdm(total=self.steps, initial=first, unit="step", disable=self.machine.rank > 0,
                        dynamic_ncols=True, mininterval=0.5 if sys.stderr.isatty() else 15)
        self.clock, self.logged_step = time.perf_counter(), first    # of the newest line of metrics.jsonl
        if is_due:
            self.validate(first, self.config.eval_windows)

    # --- One step

    def gradients(self, step: int, sampled: bool = False) -> torch.Tensor:
        """Adds the gradients of the mean loss over all micro-batches and ranks to each .grad. Returns the
        mean cross-entropy of this rank's sequences, a 0-d tensor.

        sampled: takes labels that the model draws itself, and the plain cross-entropy. Each sequence has
        random numbers of its own, so that any number of ranks and any resume give the same labels.
        """
        config, device = self.config, self.machine.device
        mean_loss = torch.zeros((), device=device)
        for k in range(self.accumulation):
            place = self.machine.rank * self.accumulation + k
            first_sequence = self.sequences_before + (step - 1) * config.batch + place * self.micro_batch
            ids = torch.from_numpy(self.train_set[self.order(first_sequence, self.micro_batch)]).to(device)
            x, targets, z_loss = ids[:, :-1], ids[:, 1:], config.z_loss
            if self.machine.world > 1:    # DDP must know before the forward pass whether to sum gradients
                self.ranked.require_backward_grad_sync = k == self.accumulation - 1
            with self.autocast:
                if sampled:
                    uniform = data.uniform_numbers(config.seed, first_sequence, x.shape)
                    targets = self.model.sample_labels(x, torch.from_numpy(uniform).float().to(device))
                    z_loss = 0.0
                objective, loss, _ = self.ranked(x, targets, z_loss)
            (objective / self.accumulation).backward()
            mean_loss += loss / self.accumulation
        return mean_loss

    def sampled_gradients(self, step: int) -> dict:
        """{parameter: clipped gradient on labels that the model draws itself}."""
        self.gradients(step, sampled=True)
        norm = self.gradient_norm()
        if not norm.isfinite():
            raise self.diverged(step, "gradient norm", "is not finite", broken_gradient(self.parameters))
        self.clip(norm)
        gradients = {p: p.grad.clone() for p in self.parameters.values()}
        self.model.zero_grad()
        return gradients

    def gradient_norm(self) -> torch.Tensor:
        return torch.nn.utils.get_total_norm([p.grad for p in self.parameters.values()])

    def clip(self, norm: torch.Tensor):
        """Multiplies all gradients by min(1, clip / (norm + 1e-6)), before any rule sees them. log() computes
        the clipped norm by the same formula."""
        if self.config.clip:
            torch.nn.utils.clip_grads_with_norm_(self.parameters.values(), self.config.clip, norm)

    def refuse_a_broken_step(self, step: int, loss: float, norm: float, mean_loss: torch.Tensor):
        """Ends the run before a loss or a gradient that is not finite reaches the weights. The sign rules
        would hide it for ever, since sign(nan) is 0."""
        if not math.isfinite(loss) or not math.isfinite(norm):
            broken = self.machine.gather(int(not mean_loss.isfinite()))
            ranks = ", ".join(str(rank) for rank, is_broken in enumerate(broken) if is_broken)
            where = f" on rank {ranks}" if ranks and self.machine.world > 1 else ""
            kind = "gradient norm" if math.isfinite(loss) else "loss"
            self.refuse_broken_weights(step - 1)
            raise self.diverged(step, kind, f"is not finite{where}", broken_gradient(self.parameters))
        if self.config.stop_loss and loss > self.config.stop_loss:
            why = f"is {loss:.4g}, above --stop_loss={self.config.stop_loss:g}"
            raise self.diverged(step, "loss", why)
        self.last_loss = loss

    def refuse_broken_weights(self, step: int):
        """Ends the run if a step has left weights that are not finite. No checkpoint ever holds them."""
        if tensor := broken_weight(self.parameters):
            why = likely_cause(self.config.optimizer, self.optimizer)
            raise self.diverged(step, "weights", f"are not finite{why}", tensor)

    def diverged(self, step: int, kind: str, why: str, tensor: str | None = None) -> UserError:
        """Writes down how the run diverged. Returns the error that ends it."""
        self.run.status("diverged", step=step, steps=self.steps, loss=self.last_loss, kind=kind,
                        tensor=tensor)
        self.bar.close()
        self.run.draw(draw_run, ", diverged")
        where = f" (first tensor: {tensor})" if tensor else ""
        left = "; the weights are still those of the step before" if kind in ("loss", "gradient norm") else ""
        return UserError(f"step {step}: the {kind} {why}{where}{left}", 3)

    # --- Now and then

    def log(self, step: int, loss: float, norm: float, scale: float, before: dict | None):
        """Writes a line of metrics.jsonl. before: the weights before the step; None without --log_blocks."""
        config, now = self.config, time.perf_counter()
        speed = (step - self.logged_step) * config.batch * config.context / (now - self.clock)
        self.clock, self.logged_step = now, step
        clipped = norm * min(1.0, config.clip / (norm + 1e-6)) if config.clip else norm
        self.run.log("train", step, loss=loss, lr=config.lr * scale, norm=norm, clipped_norm=clipped,
                     tokens_per_second=round(speed),
                     **(look_into(self.optimizer, before) if before else {}))
        self.bar.set_postfix_str(f"loss {loss:.3f}, lr {config.lr * scale:.2e}, {speed:,.0f} tokens/s",
                                 refresh=False)

    def validate(self, step: int, count: int) -> tuple[dict, int]:
        """Logs the validation losses after a step. Returns them by name, and the number of windows. A signal
        stops it, and a resumed run then validates first."""
        begun, count = time.perf_counter(), min(count or len(self.val_set), len(self.val_set))
        losses = validation_losses(self, count)
        if losses is None:
            raise self.interrupted(step)
        if not all(map(math.isfinite, losses.values())):    # also that of an average of the weights
            raise self.diverged(step, "validation loss", "is not finite")
        more = {}
        if step < self.steps:
            tqdm.write(f"step {step}: validation loss {announce.with_average(losses)} ({count} windows)")
        else:
            more = dict(bits_per_byte=bits_per_byte(losses["loss"], self.val_set), final=True)
        self.run.log("val", step, windows=count, **losses, **more)
        self.clock += time.perf_counter() - begun    # tokens per second leave out validation and saving
        return losses, count

    def save(self, step: int):
        """Writes a checkpoint, once the weights are found to be finite and the same bits on all ranks."""
        self.refuse_broken_weights(step)
        self.refuse_ranks_that_drift(step, f"go on from the previous checkpoint with {self.resume_command}")
        self.clock -= time.perf_counter()
        self.run.save(step, checkpoint_of(self, step), self.config.keep)
        self.clock += time.perf_counter()

    def refuse_ranks_that_drift(self, step: int, advice: str):
        """Ends the run if not all ranks hold the same bits."""
        if self.machine.world > 1 and len(set(self.machine.gather(checksum(self.model, self.optimizer)))) > 1:
            raise UserError(f"step {step}: the ranks no longer hold the same weights and state; {advice}", 4)

    def interrupted(self, step: int) -> UserError:
        """Saves everything, since a signal has come to some rank. Returns the error that ends the run."""
        self.save(step)
        self.run.status("interrupted", step=step, steps=self.steps)
        self.bar.close()
        return UserError(f"interrupted at step {step}; go on with {self.resume_command}", 75)

    def finish(self):
        """Measures the final loss and shows what came of the run."""
        config = self.config
        losses, count = self.validate(self.steps, config.final_windows)
        bits = bits_per_byte(losses["loss"], self.val_set)
        self.run.draw(draw_run, f": {config.optimizer}, lr {config.lr:g}, final {losses['loss']:.3f}")
        self.run.status("done", step=self.steps, steps=self.steps, bits_per_byte=bits, **losses)
        if self.machine.rank > 0:
            return
        if config.sample_tokens:
            script.until_interrupted(sample.show, self.model, config.data, config.sample_tokens)
        announce.print_end(self, losses, bits, count)


@script.surroundings_restored()
def main(argv: list[str]) -> int:
    """Runs a command line. Returns the exit code: 0 done, 1 a mistake of this program, 2 wrong options or
    data, 3 diverged, 4 the machine failed, 75 interrupted."""
    training = None
    try:
        script.on_signals(signal.default_int_handler)    # nothing needs saving yet, so leave at once
        config, hyper, tables = settings.read(argv, __doc__)
        if config.optimizer == "list":
            print(zoo.table.table())
        elif config.plan:
            plan.show(config, hyper, tables)
        else:
            training = Training(config, hyper, tables)
            if training.has_ended:
                training.run.show_ended()
            else:
                training.train()
        return 0
    except (Exception, KeyboardInterrupt) as caught:
        script.on_signals(signal.SIG_IGN)    # ignore further signals while the run ends
        code, message, ours = last_words(caught)
        if training and not training.has_ended:
            training.run.record_end(code, one_line(message), isinstance(caught, KeyboardInterrupt))
            script.close(training.bar)    # so that the error is the last line
        if ours:
            script.say(f"train.py: error: {one_line(message)}")
        if code == 1:    # it is a mistake of this program, so show its traceback
            raise
        return code
    finally:
        if training:
            training.run.release()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


if __name__ == "__main__":
    script.run("train.py", main)
