"""Eigenvalues by Krylov spaces: both ends with residuals and certificates, followed through training."""
