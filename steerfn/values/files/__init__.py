"""Files of vectors: every format is read and written here, and what is hostile is refused here."""

from typing import TYPE_CHECKING

from steerfn._lazy import lazy
from steerfn.values.files._atomic import TEMPORARY as TEMPORARY
from steerfn.values.files._atomic import check_output as check_output
from steerfn.values.files._atomic import temporary_name as temporary_name
from steerfn.values.files._atomic import write_together as write_together
from steerfn.values.files._document import MAX_BYTES as MAX_BYTES
from steerfn.values.files._document import Refused as Refused
from steerfn.values.files._document import brief as brief
from steerfn.values.files._document import parse_json as parse_json
from steerfn.values.files._document import vector_sha256 as vector_sha256
from steerfn.values.files._document import version_of as version_of
from steerfn.values.files._hub import HubAddress as HubAddress
from steerfn.values.files._hub import fetch_folder as fetch_folder
from steerfn.values.files._hub import is_hub as is_hub
from steerfn.values.files._push_to_hub import push_to_hub as push_to_hub
from steerfn.values.files._read import check_size as check_size
from steerfn.values.files._read import read_bytes as read_bytes
from steerfn.values.files._save_load import FORMATS as FORMATS
from steerfn.values.files._save_load import check_target as check_target
from steerfn.values.files._save_load import describe as describe
from steerfn.values.files._save_load import encode as encode
from steerfn.values.files._save_load import load as load
from steerfn.values.files._save_load import load_bytes as load_bytes
from steerfn.values.files._save_load import remove as remove
from steerfn.values.files._save_load import save as save

if TYPE_CHECKING:  # what loads at first use, for those who read types
    from steerfn.values.files._foreign import from_pt as from_pt
    from steerfn.values.files._foreign import from_repeng as from_repeng
    from steerfn.values.files._foreign import from_steering_vectors as from_steering_vectors


__getattr__, __dir__ = lazy(globals(), {"steerfn.values.files._foreign": "from_pt from_repeng from_steering_vectors"})
