"""Scan."""
import sys, tempfile, time, warnings, traceback
from pathlib import Path
import numpy as np, torch
warnings.simplefilter("ignore")
from tests.exporters.operators.cases import CASES
from pfl_mobile.programs import trace as T
from pfl_exporters.targets import resolve
from pfl_exporters.export import open_lowered
from pfl_mobile.programs.trace import *
try:
    from pfl_exporters.specs import program_specs
except ImportError:
    from tests.exporters.test_targets import program_specs
def flat(y):
    y = y if isinstance(y, (tuple, list)) else (y,)
    return [t for t in y if t.is_floating_point()]
def reference(c, xs):
    xs=[x.clone().requires_grad_() for x in xs]
    ys=flat(c.function(*xs)); ws=[torch.randn(y.shape, generator=torch.Generator().manual_seed(7)) for y in ys]
    loss=sum((y*w).sum() for y,w in zip(ys,ws))
    g=torch.autograd.grad(loss,xs,allow_unused=True)
    return [loss.detach()]+[torch.zeros_like(x) if v is None else v for v,x in zip(g,xs)], ws
def program(c, ws):
    xs=c.inputs()
    values={f"x{i}":x for i,x in enumerate(xs)}
    def f(batch, vals):
        leaves={n:v.detach().requires_grad_() for n,v in vals.items()}
        ys=flat(c.function(*leaves.values()))
        loss=sum((y*w).sum() for y,w in zip(ys,ws))
        g=torch.autograd.grad(loss,list(leaves.values()),allow_unused=True)
        return {"loss":loss.detach().reshape(1), **{f"g{i}":(torch.zeros_like(x)+0*x if v is None else v) for i,(v,x) in enumerate(zip(g,leaves.values()))}}
    return T._trace("gradients", f, {}, values, ())
def err(got, want):
    return max(float((torch.as_tensor(np.asarray(a)).reshape(b.shape)-b).abs().max()/(b.abs().max()+1e-6)) for a,b in zip(got,want))
engines=sys.argv[1].split(",") if len(sys.argv)>1 else ["trace"]
pat=sys.argv[2] if len(sys.argv)>2 else ""
targets={}
for e in engines:
    if e!="trace":
        (t,)=resolve([e]); t.load(); targets[e]=t
for c in CASES:
    if pat not in c.name: continue
    out=[]
    try: want,ws=reference(c,c.inputs())
    except Exception as e: print(f"REF  {c.name}: {type(e).__name__} {e}"[:200]); continue
    try:
        p=program(c,ws); e=err(list(p.run(p.inputs).values()),want); out.append(f"trace {e:.1e}")
    except Exception as e:
        print(f"{c.name:70s} TRACE {type(e).__name__} {str(e)[:160]}".replace("\n"," "), flush=True); continue
    for n,t in targets.items():
        try:
            with tempfile.TemporaryDirectory() as d:
                l=t.lower({"gradients":p},Path(d),lambda m:None)
                with open_lowered(t,l,program_specs({"gradients":p})) as s:
                    r=s.run("gradients",{k:v.numpy() for k,v in p.inputs.items()})
            e=err([r[o] for o in p.outputs],want); out.append(f"{n} {e:.1e}"+(" BAD" if not e<1e-4 else ""))
        except Exception as e: out.append(f"{n} {type(e).__name__} {str(e)[:140]}".replace("\n"," "))
    print(f"{c.name:70s} "+" | ".join(out), flush=True)
