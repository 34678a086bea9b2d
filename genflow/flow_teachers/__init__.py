from genflow.flow_teachers.tarflow import TARFlow
