from hpcdat.attacks.pgd import PGD as PGD
from hpcdat.exchange.horovod_compression import QuantizedSum as QuantizedSum
from hpcdat.optim.lamb import LAMB as LAMB
from hpcdat.optim.lamb import MomentumLALR as MomentumLALR
from hpcdat.optim.lars import LARS as LARS

__version__: str
__all__ = ["LAMB", "LARS", "PGD", "MomentumLALR", "QuantizedSum"]
