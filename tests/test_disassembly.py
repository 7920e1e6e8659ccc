"""Main loops found in listings, and what they hold."""

from __future__ import annotations

import pytest

from lk_triton.tools.disassembly import AMDGCN, SASS, main_loop, mix

NVIDIA = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
.L_x_1:
        /*0020*/                   LDGSTS.E.BYPASS.LTC128B.128 [R3], desc[UR4][R2.64] ;
        /*0030*/              @!P0 LDGSTS.E.64 [R3], desc[UR4][R2.64] ;
        /*0040*/                   HGMMA.64x64x16.F32 R24, gdesc[UR8], R24 ;
        /*0050*/               @P1 BRA `(.L_x_1) ;
        /*0060*/               @P2 BRA `(.L_x_0) ;
        /*0070*/                   EXIT ;
"""


def opcodes(texts: list[str]) -> list[str]:
    return [text.split()[0] for text in texts]


def test_main_loop_is_the_innermost_loop_with_an_mma():
    loop = main_loop(NVIDIA)
    assert opcodes(loop) == ["LDGSTS.E.BYPASS.LTC128B.128", "LDGSTS.E.64", "HGMMA.64x64x16.F32", "BRA"]
    assert len(main_loop(NVIDIA.replace("HGMMA", "FFMA"))) == 8


WAITING = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR19], R4 ;
        /*0020*/              @!P0 BRA `(.L_x_2) ;
.L_x_1:
        /*0030*/                   UTCHMMA gdesc[UR12], gdesc[UR14], tmem[UR8], tmem[UR26], idesc[UR27], UPT ;
        /*0040*/                   BRA.U UP0, `(.L_x_0) ;
        /*0050*/                   STG.E.128 desc[UR4][R2.64], R4 ;
        /*0060*/                   EXIT ;
.L_x_2:
        /*0070*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR19], R4 ;
        /*0080*/              @!P0 BRA `(.L_x_2) ;
        /*0090*/                   BRA `(.L_x_1) ;
"""


def test_code_moved_out_of_the_loop_belongs_to_it():
    """sm_100 waits for its tensor cores behind the kernel's end and jumps back into the middle of the loop."""
    loop = main_loop(WAITING)
    assert len(loop) == 7
    assert not {"MOV", "STG.E.128", "EXIT"} & set(opcodes(loop))
    assert mix(loop).mma == 1
    assert mix(loop).mma_kind == "UTCHMMA"


AMD = """
\ts_load_dwordx2 s[2:3], s[0:1], 0x0
\ts_branch .LBB0_2
.LBB0_1:                                ;   in Loop: Header=BB0_2 Depth=1
\tv_mfma_f32_32x32x8_f16 v[16:31], v[110:111], v[36:37], v[16:31]
\ts_cbranch_scc0 .LBB0_3
.LBB0_2:                                ; =>This Inner Loop Header: Depth=1
\t.loc\t1 74 9                          ; toeplitz.py:74:9
\tglobal_load_dwordx4 v[106:109], v[32:33], off
\ts_cbranch_execz .LBB0_1
.Ltmp1:
\tbuffer_load_ushort v1, v2, s[0:3], 0 offen ; a comment
\ts_branch .LBB0_1
.LBB0_3:
\tv_mfma_f32_32x32x8_f16 v[16:31], v[110:111], v[36:37], v[16:31]
\tglobal_store_dwordx2 v[0:1], v[2:3], off
\ts_endpgm
"""


def test_rotated_loop_of_amd():
    """The latch comes first, and the loop is entered in its middle."""
    loop = main_loop(AMD, AMDGCN)
    assert sorted(opcodes(loop)) == [
        "buffer_load_ushort", "global_load_dwordx4", "s_branch", "s_cbranch_execz", "s_cbranch_scc0", "v_mfma_f32_32x32x8_f16",
    ]  # fmt: skip
    counted = mix(loop, AMDGCN)
    assert (counted.mma, counted.mma_kind) == (1, "v_mfma_f32_32x32x8_f16")
    assert counted.loads == {16: (0, 1), 2: (0, 1)}
    assert counted.load_counts == {16: 1, 2: 1}


@pytest.mark.parametrize(
    ("language", "text", "width", "asynchronous"),
    [
        (SASS, "LDG.E.128.CONSTANT R4, desc[UR4][R2.64]", 16, False),
        (SASS, "LDG.E.64 R4, desc[UR4][R2.64]", 8, False),
        (SASS, "LDG.E R4, desc[UR4][R2.64]", 4, False),
        (SASS, "LDG.E.U16.CONSTANT R4, desc[UR4][R2.64]", 2, False),
        (SASS, "LDG.E.S8 R4, desc[UR4][R2.64]", 1, False),
        (SASS, "LDGSTS.E.LTC128B [R3], desc[UR4][R2.64]", 4, True),
        (SASS, "LDGSTS.E.BYPASS.LTC128B.128 [R3], desc[UR4][R2.64]", 16, True),
        (AMDGCN, "global_load_dwordx3 v[20:22], v[2:3], off", 12, False),
        (AMDGCN, "global_load_dwordx2 v[4:5], v[4:5], off", 8, False),
        (AMDGCN, "global_load_dword v4, v[4:5], off", 4, False),
        (AMDGCN, "global_load_ushort v4, v[4:5], off", 2, False),
        (AMDGCN, "global_load_short_d16_hi v4, v[4:5], off", 2, False),
        (AMDGCN, "buffer_load_sbyte v4, v5, s[0:3], 0 offen", 1, False),
        (AMDGCN, "buffer_load_dwordx4 v[4:7], v5, s[0:3], 0 offen", 16, False),
        (AMDGCN, "buffer_load_dword v5, s[0:3], 0 offen lds", 4, True),
        (AMDGCN, "global_load_lds_dwordx4 v[4:5], off", 16, True),
    ],
)
def test_widths(language, text, width, asynchronous):
    assert mix([text], language).loads == {width: (int(asynchronous), int(not asynchronous))}


def test_no_stores_no_shared_loads():
    assert mix(["STG.E.128 desc[UR4][R2.64], R4", "LDS.128 R4, [R2]", "LDSM.16.M88.4 R4, [R2]"]).loads == {}
    assert mix(["global_store_dwordx4 v[0:1], v[2:5], off", "ds_read_b128 v[0:3], v4"], AMDGCN).loads == {}
