"""placeholder"""
from .base import TritonAlgorithm
class DirectAlgorithm(TritonAlgorithm):
    name = "direct"
    def supports(self, problem, device): return "not yet"
    def configs(self, problem, device): return []
