"""Published numbers, each recomputed by the count: confirmed, refuted or undecided.

A claim is data, in a TOML file; its verdict is computed. benchbench's own stand in suites/claims.

```toml
title = "Parameters"
about = "What a checkpoint holds."

[sources.gpt2]
cite = "Radford et al. 2019"
title = "Language Models are Unsupervised Multitask Learners"
url = "https://github.com/openai/gpt-2"          # or arxiv = "2312.00752"

[models.gpt2-medium]                             # where no preset has the sizes: like a preset, or family = ...
like = "gpt2"
n_layers = 24

[[claims]]
id = "gpt2-medium-params"
says = "GPT-2 medium has 354,823,168 parameters"
source = "gpt2"
at = "checkpoint"
model = "gpt2-medium"                            # task, seq_len, batch, dtype, autocast, path, optimizer: as in a suite
ours = "params"                                  # arithmetic on counted quantities, log() included
published = "354,823,168"                        # as printed: 2.04 stands for 2.035 up to 2.045
unit = "parameters"
# base = { seq_len = 1024 }: a second case, whose quantities are base.flops, ...
# device = "cuda": memory by the kernels and the allocator of a GPU, on a path that runs anywhere
# within = 0.1 for "about": ten percent to either side; relation = "at most" or "at least"
# lacks = "measurement" (why = ...) where no count can decide it; note = ... is shown beside the verdict
```
"""
