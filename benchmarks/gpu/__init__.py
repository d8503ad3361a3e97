"""Measurements on one GPU: tests, CIFAR-10 in a minute and in ten, attack steps, the codec, ConAdv, Horovod.

``python benchmarks/gpu SECTION... [--json docs/gpu-h200.json] [--cifar ROOT] [--page FOLDER]`` measures the
sections one after the other and merges them into the JSON, which is written after each part. A section that
is measured again replaces what the JSON has of it. When ``--limit`` stops it, the command ends with exit code
75 and the same command resumes: training from its checkpoint, evaluations from the batches that are done.

- ``tests``: the tests that need a GPU.
- ``speedrun``: jobs/cifar10-speedrun.yaml for each of ``--seeds``.
- ``ten-minutes``: jobs/cifar10-ten-minutes.yaml for the first of them.
- ``step``: training steps of pre-activation ResNet-18: the trainer's, plain ones, and with foolbox's attack.
- ``resnet50``: the same steps of ResNet-50, and their share of the card's peak.
- ``codec``: encoding and decoding of 25.6 million numbers.
- ``concurrent``: ConAdv, DisAdv and vanilla training of ResNet-50.
- ``horovod``: an all-reduce on the GPU, and two workers that share it against two on the CPU.
- ``page``: measures nothing; with ``--page``, writes the page of what the JSON has.

Each section is a module of this package with three functions, :class:`gpu.section.Section`; its docstring
says what is measured and defines the ratios. A ratio that was not measured is null, with a reason.

``first_hour.sh`` measures the sections in order of worth, in at most nine minutes, on a machine that is lent;
``wheels.txt`` lists what it needs there. ``--merge`` joins the files that it leaves:

    python benchmarks/gpu page --merge first-hour/*.json --json docs/gpu-h200.json --page docs/papers/gpu-h200

``--device cpu --tiny`` runs everything at a tiny size, without compiling the network.
foolbox, pyautoattack and Horovod are measured where they are installed; the page needs jinja2 and matplotlib.
"""
