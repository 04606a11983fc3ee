import io, numpy as np, torch
from PIL import Image
from contextlib import contextmanager
from adadf_dist.data.batch import Batch
from adadf_dist.data.format import open_dataset
class Data:
    def __init__(s,c,rank,ranks,device):
        s.ds=open_dataset(c.data.shards); s.c=c; s.rank=rank; s.ranks=ranks
        s.train_split=s.ds.split("train"); s.validation_split=s.ds.split("validation"); s.test_split=s.ds.split("test")
        s.classes=s.ds.classes; s.name=s.ds.name
        class P:
            classes=s.ds.classes
            def to_dict(self): return {"classes":list(self.classes)}
        s.preprocessing=P()
    def cut(s,order): return np.array_split(order,-(-len(order)//s.c.batch_size))
    def batches(s,split,bs,aug=False):
        for b in bs:
            parts=np.array_split(b,s.ranks); mine=parts[s.rank]; first=sum(map(len,parts[:s.rank]))
            n=s.c.data.image_size
            im=np.stack([np.asarray(Image.open(io.BytesIO(split.read(int(i)))).convert("RGB").resize((n,n),2)) for i in mine]) if len(mine) else np.zeros((0,n,n,3),np.uint8)
            if aug: im=im[:,:,::-1] if np.random.rand()<.5 else im
            x=torch.from_numpy(im.copy()).permute(0,3,1,2).float()/127.5-1
            yield Batch(x,torch.from_numpy(split.labels[mine]),torch.from_numpy(mine.astype(np.int64)),first,len(b))
    def order(s,e): return s.cut(np.random.default_rng((s.c.seed,e)).permutation(len(s.train_split)))
    def num_batches(s,e): return len(s.order(e))
    def train(s,e,f=0): return s.batches(s.train_split,s.order(e)[f:],True)
    def measure(s,e): return s.batches(s.train_split,s.order(e))
    def validation(s): return s.batches(s.validation_split,s.cut(np.arange(len(s.validation_split))))
    def test(s): return s.batches(s.test_split,s.cut(np.arange(len(s.test_split))))
@contextmanager
def open_data(config,rank,ranks,device): yield Data(config,rank,ranks,device)
