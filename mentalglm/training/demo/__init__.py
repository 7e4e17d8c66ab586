"""The demo model: made of nothing but generated posts, in minutes, on two CPU cores, by the train job.

    make demo-model                                  # prepare, mentalglm train configs/train/demo-model.yaml, export
    python -m mentalglm.training.demo prepare --output runs/demo-model
    python -m mentalglm.training.demo evaluate
    python -m mentalglm.training.demo untrained --num-layers 2 --hidden-size 128 --output two-layers

It lets everyone run every job without a GPU or a download. It answers in MentalGLM's format and is right on the
generator's posts; about real posts it knows nothing.
"""
