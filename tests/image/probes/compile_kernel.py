"""Compile a Triton kernel for an H100, with LLVM and ptxas but without a GPU."""

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def double(pointer, size: tl.constexpr):
    places = pointer + tl.arange(0, size)
    tl.store(places, 2 * tl.load(places))


source = ASTSource(fn=double, signature={"pointer": "*fp32", "size": "constexpr"}, constexprs={"size": 128})
compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
print(f"{len(compiled.asm['cubin'])} bytes of machine code")
