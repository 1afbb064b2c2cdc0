"""A Laplace posterior of laplace-torch on this engine, through its backend interface.

The diagonal of the Gauss-Newton matrix becomes the precision of a Gaussian posterior over the
weights of a network trained on the bundled digits.

    pip install laplace-torch
    python examples/laplace_posterior.py

Takes about 10 seconds on two cores; held-out accuracy of the posterior predictive 0.98
(laplace-torch 0.3, which warns of what it is made of).
"""

import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from curvserve.data import load_digits, normalise
from curvserve.engine import evaluate

try:
    from laplace import Laplace
    from laplace.curvature import CurvatureInterface
except ImportError:
    sys.exit("this example needs laplace-torch: pip install laplace-torch")


class CurvserveGGN(CurvatureInterface):  # type: ignore[misc]  # laplace-torch is not typed for us
    """The Gauss-Newton diagonal of the summed loss, as laplace-torch asks for it."""

    def __init__(self, model: nn.Module, likelihood: str, **options: Any) -> None:
        options.pop("stochastic", None)
        super().__init__(model, likelihood, **options)

    def diag(self, x: Tensor, y: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        """Return the loss of a batch and the diagonal for all parameters in one vector."""
        found = evaluate(self.model, self.lossfunc, x, y, ["diag_ggn_exact"])
        diagonal = torch.cat([d.flatten() for d in found.quantities["diag_ggn_exact"].values()])
        return self.factor * found.loss, self.factor * diagonal


torch.manual_seed(0)
images, labels = load_digits()
loader = DataLoader(TensorDataset(normalise(images), labels), batch_size=100, shuffle=True)
model = nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for _ in range(15):
    for x, y in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

posterior = Laplace(
    model,
    "classification",
    subset_of_weights="all",
    hessian_structure="diag",
    backend=CurvserveGGN,
)
posterior.fit(loader)
posterior.optimize_prior_precision(pred_type="glm", method="marglik")

x, y = load_digits("test")
probabilities = posterior(normalise(x), pred_type="glm", link_approx="probit")
accuracy = (probabilities.argmax(1) == y).float().mean().item()
print(f"log marginal likelihood {posterior.log_marginal_likelihood().item():.1f}")
print(f"mean confidence {probabilities.max(1).values.mean().item():.3f}")
print(f"accuracy held out: {accuracy:.3f}")
