"""A tight PyTorch loop over one VAE per class: what `speed.py training` is timed against."""

from collections.abc import Callable

import torch
from torch import nn


class VAE(nn.Module):
    """The paper's VAE at 28x28x1."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *(nn.Conv2d(1, 32, 5), nn.BatchNorm2d(32), nn.ELU()),
            *(nn.Conv2d(32, 32, 4, 2), nn.BatchNorm2d(32), nn.ELU()),
            *(nn.Conv2d(32, 64, 3, 2), nn.BatchNorm2d(64), nn.ELU()),
            nn.Conv2d(64, 16, 5),
        )
        self.decoder = nn.Sequential(
            *(nn.ConvTranspose2d(8, 32, 4), nn.BatchNorm2d(32), nn.ELU()),
            *(nn.ConvTranspose2d(32, 16, 5, 2), nn.BatchNorm2d(16), nn.ELU()),
            *(nn.ConvTranspose2d(16, 16, 5, 2), nn.BatchNorm2d(16), nn.ELU()),
            *(nn.ConvTranspose2d(16, 1, 4), nn.Sigmoid()),
        )

    def loss(self, images: torch.Tensor, beta: float) -> torch.Tensor:
        """Reconstruction error plus beta times the KL divergence, averaged over the images."""
        mean, log_variance = self.encoder(images).chunk(2, dim=1)
        latents = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        errors = (images - self.decoder(latents)).square().sum((1, 2, 3))
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum((1, 2, 3))
        return (errors + beta * kl).mean()


def training_steps(batch_size: int, num_classes: int) -> Callable[[int], None]:
    """A function that makes a number of training steps of all classes' VAEs."""
    vaes = [VAE() for _ in range(num_classes)]
    optimizers = [torch.optim.Adam(vae.parameters(), 1e-3) for vae in vaes]
    images = torch.rand(num_classes, batch_size, 1, 28, 28)

    def run(steps: int) -> None:
        for _ in range(steps):
            for vae, optimizer, batch in zip(vaes, optimizers, images, strict=True):
                optimizer.zero_grad(set_to_none=True)
                vae.loss(batch, 1.0).backward()
                optimizer.step()

    return run
