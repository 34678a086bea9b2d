from genflow.flow_teachers.coupling_flow import CouplingFlow
from genflow.flow_teachers.tarflow import TARFlow
