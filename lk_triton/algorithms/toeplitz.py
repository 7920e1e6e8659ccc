"""placeholder"""
from .base import TritonAlgorithm
class ToeplitzAlgorithm(TritonAlgorithm):
    name = "toeplitz"
    def supports(self, problem, device): return "not yet"
    def configs(self, problem, device): return []
