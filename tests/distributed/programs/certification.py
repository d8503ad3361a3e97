"""Certification of a run."""

import hashlib
import os
import signal
import time
from pathlib import Path

import hpcdat.commands.certify
from hpcdat.evaluation.certification.smoothed_classifier import SmoothedClassifier
from hpcdat.storage.run_folder import RunFolder
from tests.conftest import Never


def certify(workers, patch, run_dir, *settings, kill_at=-1):
    """Certify a run; fingerprints of what it leaves. The rank that comes to image ``kill_at`` is killed."""
    sample = SmoothedClassifier.certify

    def sample_or_die(smoothed, x, *, image, **samples):
        if image == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return sample(smoothed, x, image=image, **samples)

    patch.setattr(SmoothedClassifier, "certify", sample_or_die)
    hpcdat.commands.certify.certify(Path(run_dir), list(settings), workers, Never())
    workers.all_gather_object(None, "written")
    return certificates(Path(run_dir))


def certify_and_die(workers, patch, run_dir, image, *settings):
    """The same, but the rank that comes to this image is killed."""
    return certify(workers, patch, run_dir, *settings, kill_at=image)


def certify_slowly(workers, patch, run_dir, *settings):
    """The same, but for the last image one rank takes longer than the other may wait without a word."""
    sample = SmoothedClassifier.certify
    patch.setattr(workers._watchdog, "seconds", 60)

    def sample_slowly(smoothed, x, *, image, **samples):
        begin, last = time.monotonic(), smoothed.sigma == 0.12 and image in (360, 390)
        workers._watchdog.seconds = 4 if last else 60
        while last and image == 390 and time.monotonic() - begin < 6:
            smoothed.model(x[None])
        return sample(smoothed, x, image=image, **samples)

    patch.setattr(SmoothedClassifier, "certify", sample_slowly)
    return certify(workers, patch, run_dir, *settings)


def certificates(run_dir):
    """A hash of every file of a certification but the plot, by name."""
    files = sorted(RunFolder(run_dir).certification_folder.glob("[!.]*"))
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest()[:16] for f in files if f.suffix != ".svg"}
