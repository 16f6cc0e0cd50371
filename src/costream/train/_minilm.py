import torch
from safetensors.torch import load_file
def minilm_state(ml,context):
    b=load_file(ml/'model.safetensors')
    t={}
    t['token_embedding.weight']=b['embeddings.word_embeddings.weight']
    t['position_embedding']=(b['embeddings.position_embeddings.weight']+b['embeddings.token_type_embeddings.weight'][0])[:context]
    for n in('weight','bias'):
        t[f'embedding_norm.{n}']=b[f'embeddings.LayerNorm.{n}']
        for i in range(6):
            p,q=f'encoder.layer.{i}.',f'transformer.layers.{i}.'
            t[q+f'attention.qkv.{n}']=torch.cat([b[p+f'attention.self.{k}.{n}'] for k in('query','key','value')])
            t[q+f'attention.out.{n}']=b[p+f'attention.output.dense.{n}']
            t[q+f'attention_norm.{n}']=b[p+f'attention.output.LayerNorm.{n}']
            t[q+f'mlp_in.{n}']=b[p+f'intermediate.dense.{n}']
            t[q+f'mlp_out.{n}']=b[p+f'output.dense.{n}']
            t[q+f'mlp_norm.{n}']=b[p+f'output.LayerNorm.{n}']
    return t
