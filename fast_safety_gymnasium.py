"""Safety Gymnasium 1.0.0, several times faster, with results identical to the last bit.

    import fast_safety_gymnasium, safety_gymnasium  # that is all; or: install(), uninstall()
    env = safety_gymnasium.make("SafetyPointGoal1-v0")

Every number that comes out of `reset` and `step` (observation, reward, cost, terminated, truncated, and info
with its costs) is the one that the package gives by itself, and so are its type and the random numbers drawn.
Only the time differs. Covered are the navigation tasks Goal, Button, Push, Circle and Run, at levels 0 to 2
and with all five agents, and the velocity tasks. What is not known here (vision, keyboard, race and fading
tasks, options changed by hand) runs the original code, and a warning says so, once. Environments made with a
`render_mode` run it as well: all that is visual is as before. So do steps while a callback of MuJoCo is set
that may read sensors, and the copy of an environment, until its next reset. Beside another mujoco or
gymnasium than those of `VERSIONS` nothing is installed, and a warning says so. Attributes of `env.task`
changed by hand count from the next reset on, at the latest; methods replaced by hand, of a task or its
objects, do not. Python 3.11 can import the package, too, and gymnasium-robotics is not needed.

Where the time went, and no longer goes
 1. A reset decodes PNG textures, which only a renderer needs, and parses YAML and XML. Here the package
    writes the XML of a world once, and each reset puts new positions into that text.
 2. A step calls mj_forward three times, though nothing has moved after the first. Only the constraint solver,
    which starts from where it ended before, still changes last bits; here, only that part runs again.
 3. Contacts were told apart by the names of their geometries. Here each geometry has a few bits.
 4. Distances, lidars and placements went object by object through small functions of numpy. Here vectors and
    angles of all objects are computed together, and the rest is Python's arithmetic.
 5. Sensors were evaluated in every frame. Here they are where somebody reads them: at the end of a step.

Why no bit changes: each function names what it replaces, and gives the reason. None sums in another order or
takes a similar function of another library. What is assumed of numpy, that an array gives the same bits as
its elements one by one, is checked on the machine at hand in a few milliseconds (`exact`); if it fails,
nothing is installed. `test_fast.py` compares whole episodes of all tasks with the package untouched.
"""

import dataclasses, functools, importlib, importlib.metadata, importlib.util, itertools, math, re, sys
import types, unittest.mock, warnings
from copy import copy, deepcopy
from operator import attrgetter
from types import SimpleNamespace

import mujoco
import numpy as np

# what the proof in test_fast.py was run with
VERSIONS = {"safety-gymnasium": ["1.0.0"], "mujoco": ["2.3.3"], "gymnasium": ["0.28.1", "0.29.1"]}

def other_version(package: str) -> str:
    """What is said of a package in another version than those of VERSIONS; empty if it is one of them."""
    version = importlib.metadata.version(package)
    if version in VERSIONS[package]:
        return ""
    return f"fast_safety_gymnasium is for {package} {' or '.join(VERSIONS[package])}, and here is {version}"

def import_safety_gymnasium():
    """The package, in spite of gymnasium-robotics, and of Python 3.11, which refuses arrays as defaults."""
    if reason := other_version("safety-gymnasium"):
        raise ImportError(f"{reason}.")
    dataclass, robotics = dataclasses.dataclass, "gymnasium_robotics.envs.multiagent_mujoco.mujoco_multi"

    def dataclass_with_arrays(cls=None, **options):
        for name, value in list(vars(cls or object).items()):  # none is given beside options
            if isinstance(value, np.ndarray):
                setattr(cls, name, dataclasses.field(default_factory=value.copy))
        return dataclass(cls, **options)

    if not importlib.util.find_spec("gymnasium_robotics"):
        sys.modules.setdefault(robotics, unittest.mock.MagicMock())
    try:
        with unittest.mock.patch.object(dataclasses, "dataclass", dataclass_with_arrays):
            return importlib.import_module("safety_gymnasium")
    except ImportError as error:
        if reason := other_version("mujoco") or other_version("gymnasium"):
            raise ImportError(f"{reason}, where safety-gymnasium cannot be imported: {error}.") from None
        raise

import_safety_gymnasium()
import xmltodict
from gymnasium.envs.mujoco.half_cheetah_v4 import HalfCheetahEnv
from safety_gymnasium import agents, tasks, world as worlds
from safety_gymnasium.assets.free_geoms import PushBox, Vases
from safety_gymnasium.assets.geoms import Buttons, Circle, Goal, Hazards, Pillars, Sigwalls
from safety_gymnasium.assets.mocaps import Gremlins
from safety_gymnasium.builder import Builder
from safety_gymnasium.tasks.safe_velocity import (
    safety_ant_velocity_v0, safety_half_cheetah_velocity_v0, safety_hopper_velocity_v0,
    safety_humanoid_velocity_v0, safety_swimmer_velocity_v0, safety_swimmer_velocity_v1,
    safety_walker2d_velocity_v0)
from safety_gymnasium.utils.common_utils import ResamplingError, rot2quat
from safety_gymnasium.utils.random_generator import RandomGenerator
from safety_gymnasium.utils.task_utils import get_body_xvelp

ORIGINAL = {}  # (class, name) -> what stood there before install
TEMPLATES = {}  # all of a world but its positions and rotations -> its XML, cut where they go
TEXTURE = re.compile(r'<texture\b[^>]*?(/>|></texture>)|\stexture="[^"]*"')
AGENT, VASE, PILLAR, GREMLIN, BUTTON = 1, 2, 4, 8, 16  # bits of a geometry; button i has BUTTON << i
POSITION_AND_VELOCITY = int(mujoco.mjtStage.mjSTAGE_VEL)  # stages of mj_forward that are left out
LEAST, MOST = np.array(-10.0), np.array(10.0)  # arrays are sooner told from others than Python's numbers
NO_SENSORS = int(mujoco.mjtDisableBit.mjDSBL_SENSOR)
CALLBACKS = mujoco.get_mjcb_control, mujoco.get_mjcb_passive, mujoco.get_mjcb_contactfilter
BODY, GEOM, SENSOR = mujoco.mjtObj.mjOBJ_BODY, mujoco.mjtObj.mjOBJ_GEOM, mujoco.mjtObj.mjOBJ_SENSOR

# what is known
AGENTS = {agents.Point, agents.Car, agents.Racecar, agents.Doggo, agents.Ant}
OPTIONS = {
    "observe_vision": False, "debug": False, "observation_flatten": True, "action_noise": 0, "viewer": None,
    "_is_load_static_geoms": False, "lidar_conf.type": "pseudo", "lidar_conf.alias": True,
    "cost_conf.constrain_indicator": True, "reward_conf.reward_orientation": False,
    "sim_conf.frameskip_binom_p": 1.0, "agent.sensor_conf.sensors_angle_components": True}
OBSTACLES = {
    Goal: {"is_lidar_observed": True, "is_comp_observed": False, "is_meshed": False},
    PushBox: {"is_lidar_observed": True, "is_comp_observed": False},
    Hazards: {"is_lidar_observed": True, "is_meshed": False, "cost": 1.0},
    Pillars: {"is_lidar_observed": True, "cost": 1.0}, Buttons: {"is_lidar_observed": True, "cost": 1.0},
    Vases: {"is_lidar_observed": True, "contact_cost": 1.0, "displace_cost": 0.0, "velocity_cost": 1.0},
    Gremlins: {"is_lidar_observed": True, "contact_cost": 1.0},
    Circle: {"is_lidar_observed": True}, Sigwalls: {"is_lidar_observed": False}}

def unknown(builder: Builder) -> str:
    """What it is about an environment that is not known here; empty if all is."""
    task = builder.task
    if type(builder) is not Builder or type(task) not in REWARDS or type(task.agent) not in AGENTS:
        return " ".join(type(part).__name__ for part in (builder, task, task.agent))
    things = [(task, "task", OPTIONS)]
    things += [(thing, thing.name, OBSTACLES.get(type(thing), {"name": None})) for thing in task._obstacles]
    for thing, name, options in things:
        for path, expected in options.items():
            if (value := attrgetter(path)(thing)) != expected:
                return f"{name}.{path} = {value!r}"
    boxes, bins = task.obs_info.obs_space_dict.items(), task.lidar_conf.num_bins
    if any(box.shape != (bins,) for name, box in boxes if name.endswith("_lidar")):
        return f"task.lidar_conf.num_bins = {bins}, and another observation_space"
    return "" if task.lidar_conf.max_dist else f"task.lidar_conf.max_dist = {task.lidar_conf.max_dist!r}"

@functools.lru_cache(None)
def tell(reason: str) -> None:
    warnings.warn(f"fast_safety_gymnasium does not know {reason}: the original code runs.", stacklevel=4)

# reset
def sample_layout(self) -> bool:
    """RandomGenerator.sample_layout, draw_placement and constrain_placement (utils.random_generator).

    The same operations on the same doubles, by Python. A uniform number in [a, b) is a + (b - a) u."""
    original, areas, margin = ORIGINAL[RandomGenerator, "sample_layout"], [], self.placements_margin
    for name, (placements, keepout) in self.placements.items():
        if placements is not None and len(placements) != 1:
            return original(self)
        area = self.placements_extents if placements is None else placements[0]
        x0, y0, x1, y1 = self.constrain_placement(area, keepout)
        if placements is not None and (x0 > x1 or y0 > y1):
            return original(self)
        areas.append((name, x0, x1 - x0, y0, y1 - y0, keepout))
    uniform, sqrt, placed = self.random_generator.random_sample, math.sqrt, []
    for name, x0, width, y0, height, keepout in areas:
        others = [(x, y, other + margin + keepout) for _, x, y, other in placed]
        for _ in range(100):
            x, y = x0 + width * uniform(), y0 + height * uniform()
            for other_x, other_y, reach in others:
                dx, dy = x - other_x, y - other_y
                if sqrt(dx * dx + dy * dy) < reach:
                    break
            else:
                placed.append((name, x, y, keepout))
                break
        else:
            return False
    self.layout = {name: np.array([x, y]) for name, x, y, _ in placed}
    return True

def sample_goal_position(self) -> bool:
    """RandomGenerator.sample_goal_position (utils.random_generator): the same operations, by Python."""
    placements, keepout = self.placements["goal"]
    goal = self.draw_placement(placements, keepout)
    x, y = goal.tolist()
    for name, other in self.layout.items():
        other_x, other_y = other.tolist()
        distance = math.sqrt((x - other_x) * (x - other_x) + (y - other_y) * (y - other_y))
        if distance < self.placements[name][1] + self.placements_margin + keepout:
            return False
    self.layout["goal"] = goal
    return True

def template(world: worlds.World) -> tuple[list, list]:
    """The XML of a world as World.build writes it, in pieces; and which numbers go between them."""
    names = {**vars(worlds), "mujoco": unittest.mock.MagicMock()}  # it writes the text; nothing is compiled
    world = copy(world)
    world.engine = unittest.mock.MagicMock()
    types.FunctionType(worlds.World.build.__code__, names)(world)  # a patched module is other threads', too
    agent, *others = world.xml["mujoco"]["worldbody"]["body"]
    agent["@pos"], agent["@quat"] = "#0#", "#1#"
    agent["camera"][-1].update({"@pos": "#2#", "@xyaxes": "#3#"})
    for i, body in enumerate(others):
        place = body["geom"] if "@mocap" in body else body
        place["@pos"], place["@quat"] = f"#{2 * i + 4}#", f"#{2 * i + 5}#"
    pieces = re.split("#([0-9]+)#", TEXTURE.sub("", xmltodict.unparse(world.xml)))
    return pieces[::2], [int(index) for index in pieces[1::2]]

def compile_world(world: worlds.World, config: dict) -> None:
    """World.parse and World.build (safety_gymnasium.world): the same XML, but for textures, goes to MuJoCo.

    A float that Python or numpy has written is read back as it was."""
    vars(world).update({**world.DEFAULT, **config}, config=config)
    objects = [*world.free_geoms.values(), *world.mocaps.values(), *world.geoms.values()]
    fixed = [[(name, value if isinstance(value, (int, float, str)) else tuple(value))
              for name, value in thing.items() if name not in ("pos", "rot")] for thing in objects]
    key = repr((world.agent_base, world.floor_type, list(world.floor_size), fixed))
    if key not in TEMPLATES:
        if len(TEMPLATES) == 100:  # of sizes that change from reset to reset
            TEMPLATES.clear()
        TEMPLATES[key] = template(world)
    theta = world.agent_rot + np.pi
    sine, cosine = np.sin(theta), np.cos(theta)
    numbers = [np.r_[world.agent_xy, world._agent.z_height], rot2quat(world.agent_rot),
               [0 * cosine + -2 * sine, 0 * -sine + -2 * cosine, 2], [cosine, -sine, 0, sine, cosine, 1]]
    for thing in objects:
        numbers += [thing["pos"], rot2quat(thing["rot"])]
    pieces, order = TEMPLATES[key]
    texts = [" ".join(map(repr, np.asarray(numbers[index], float).tolist())) for index in order]
    world.xml_string = "".join(itertools.chain(*zip(pieces, texts), pieces[-1:]))
    model = mujoco.MjModel.from_xml_string(world.xml_string)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    world.engine.update(model, data)

def build(task) -> None:
    """Underlying.reset and ._build (bases.underlying), World.reset and .rebuild (safety_gymnasium.world).

    There the first world of an environment is compiled twice, to no effect, and each later one has a second
    mj_forward, to great effect: the solver goes on, and the first episode differs in its last bits."""
    generator, info, placements = task.random_generator, task.world_info, task.placements_conf
    if placements.placements is None:
        task._build_placements_dict()
        generator.set_placements_info(placements.placements, placements.extents, placements.margin)
    info.layout = generator.build_layout()
    info.world_config_dict = task._build_world_config(info.layout)
    if first := task.world is None:
        task.world = worlds.World(task.agent, task._obstacles, info.world_config_dict)
    compile_world(task.world, info.world_config_dict)
    if not first:
        mujoco.mj_forward(task.model, task.data)
    info.reset_layout = deepcopy(info.layout)

def body_names(obstacle) -> list[str]:
    """The bodies whose positions are `obstacle.pos` (assets); a circle's is the origin, as the world's."""
    if not hasattr(obstacle, "num"):
        return ["world" if type(obstacle) is Circle else obstacle.name]
    count = 0 if type(obstacle) is Sigwalls else obstacle.num
    return [f"{obstacle.name[:-1]}{i}{'obj' * (type(obstacle) is Gremlins)}" for i in range(count)]

def kind(name: str, agent) -> int:
    """What cal_cost of vases, pillars, gremlins and buttons (assets) ask of the name of a geometry."""
    bits = (AGENT * (name in agent.body_info.geom_names) | VASE * name.startswith("vase")
            | PILLAR * name.startswith("pillar") | GREMLIN * name.startswith("gremlin"))
    return bits | (BUTTON << int(name[6:]) if name.startswith("button") else 0)

class Plan(SimpleNamespace):
    """What steps need of a world. Its arrays of model and data are MuJoCo's own memory.

    The copy of an environment has memory of its own, and copied arrays would belong to nothing. So the copy
    of a plan is None, and so is what is read from a pickled one."""

    def __reduce__(self):
        return type(None), ()

def make_plan(task) -> Plan:
    """The plan of a world, found once at reset."""
    model, data, info, obstacles = task.model, task.data, task.agent.sensor_info, task._obstacles
    rows, bodies = {}, []  # an obstacle's name -> its rows among all objects; body of each object
    for obstacle in obstacles:
        names = body_names(obstacle)
        rows[obstacle.name] = slice(len(bodies), len(bodies) + len(names))
        bodies += [mujoco.mj_name2id(model, BODY, name) for name in names]
    sizes = {name: math.prod(space.shape) for name, space in task.obs_info.obs_space_dict.spaces.items()}
    starts = dict(zip(sizes, itertools.accumulate(sizes.values(), initial=0)))  # in the observation
    entries = {}  # a sensor's name -> its entries of sensordata
    for name in filter(info.sensor_dim.get, sizes):
        sensor = mujoco.mj_name2id(model, SENSOR, name)
        entries[name] = np.arange(model.sensor_dim[sensor]) + model.sensor_adr[sensor]
    if info.freejoint_pos_name:
        entries[info.freejoint_pos_name] = entries[info.freejoint_pos_name][2:]
    angles = {*info.hinge_pos_names, *info.ballquat_names}
    bins = task.lidar_conf.num_bins
    lidar_starts = []  # of the lidar of each object, in the observation
    for name, part in rows.items():
        if part.start < part.stop:
            lidar_starts += [starts[f"{name}_lidar"]] * (part.stop - part.start)
    body = mujoco.mj_name2id(model, BODY, "agent")
    constrained = [thing for thing in obstacles if thing.is_constrained]
    return Plan(
        model=model, data=data, options=model.opt, targets=data.mocap_pos, ctrl=data.ctrl,
        qpos=data.qpos, qvel=data.qvel,
        low=model.actuator_ctrlrange[:, 0], high=model.actuator_ctrlrange[:, 1],
        turns=model.nq > model.nv,  # there are quaternions in qpos
        body=body, position=data.xpos[body], matrix=data.xmat[body].reshape(3, 3), xpos=data.xpos,
        jacobian=np.zeros((3, model.nv)), bodies=np.array(bodies, int), rows=rows,
        kinds=np.array([kind(mujoco.mj_id2name(model, GEOM, i) or "", task.agent)
                        for i in range(model.ngeom)]),
        contacts="buttons" in rows or any(type(thing) in (Vases, Pillars, Gremlins) for thing in constrained),
        constrained=constrained, reward=REWARDS[type(task)], size=sum(sizes.values()),
        sensordata=data.sensordata,
        vases=model.body_dofadr[bodies[rows["vases"]]][:, None] + np.arange(3) if "vases" in rows else None,
        direct=np.concatenate([entries[name] for name in entries if name not in angles]),
        hinges=np.array([entries[name][0] for name in info.hinge_pos_names], int),
        balls=[(entries[name], slice(starts[name], starts[name] + 9)) for name in info.ballquat_names],
        lidar_starts=lidar_starts,
        sector_width=np.pi * 2 / bins, sectors=[(i, (i + 1) % bins, (i - 1) % bins) for i in range(bins)])

def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple:
    """Builder.reset (safety_gymnasium.builder)."""
    self.fast_plan = None
    if self.render_parameters.mode is not None or (reason := unknown(self)):
        if self.render_parameters.mode is None:
            tell(reason)
        return ORIGINAL[Builder, "reset"](self, seed=seed, options=options)
    task = self.task
    if not task.mechanism_conf.randomize_layout:
        assert seed is None, "Cannot set seed if randomize_layout=False"
        self.set_seed(0)
    elif seed is not None:
        self.set_seed(seed)
    self.terminated, self.truncated, self.steps = False, False, 0
    build(task)
    task.update_world()
    task.specific_reset()
    task.agent.reset()
    plan = self.fast_plan = make_plan(task)
    mujoco.mj_forward(plan.model, plan.data)
    vectors, distances = geometry(plan)
    self.cost = costs(plan, distances, touched(plan))
    assert self.cost["cost_sum"] == 0, f"World has starting cost! {self.cost}"
    self.first_reset = False
    if not forward_again(plan):
        vectors, _ = geometry(plan)
    return observe(task, plan, vectors), {}

# step
def simulate(task, plan: Plan, action: np.ndarray) -> None:
    """Underlying.simulation_forward (bases.underlying), BaseAgent.apply_action, Gremlins.move (assets).

    np.clip is these two functions; binomial(n, 1) is n, and draws one double. Sensors do not act on the
    world, and nobody reads them between two frames: they are off until the last mj_forward."""
    plan.ctrl[:] = np.minimum(np.maximum(action, plan.low), plan.high)
    task.random_generator.random_generator.random_sample()
    frames, flags = task.sim_conf.frameskip_binom_n, plan.options.disableflags
    plan.options.disableflags = flags | NO_SENSORS
    try:
        if "gremlins" in plan.rows:
            simulate_gremlins(task.gremlins, plan, frames)
        else:
            mujoco.mj_step(plan.model, plan.data, nstep=frames)
    finally:
        plan.options.disableflags = flags
    mujoco.mj_forward(plan.model, plan.data)

def simulate_gremlins(gremlins: Gremlins, plan: Plan, frames: int) -> None:
    """mj_step and Gremlins.move (assets.mocaps): all have one target, which is a function of time.

    Time goes on by one addition a frame, unless mj_step finds the state beyond all bounds, and resets it."""
    data, times = plan.data, [plan.data.time]
    for _ in range(frames - 1):
        times.append(times[-1] + plan.options.timestep)
    targets = np.empty((frames, 3))
    targets[:, 0], targets[:, 1], targets[:, 2] = np.sin(times), np.cos(times), 1.0
    targets *= gremlins.travel, gremlins.travel, gremlins.size
    for time, target in zip(times, targets):
        if data.time != time:
            target[:2] = np.sin(data.time) * gremlins.travel, np.cos(data.time) * gremlins.travel
        plan.targets[:] = target
        mujoco.mj_step(plan.model, data)

def forward_again(plan: Plan, settled: bool = False, sensors: bool = True) -> bool:
    """mj_forward just after mj_forward; says whether positions and contacts are what they were.

    The stages of position and velocity are functions of qpos and qvel: they would give what is there. Only,
    qpos itself may change: mj_forward first normalises its quaternions, and once does not settle all of them
    to the last bit. Then all runs again. `settled` says that this need not be looked at. Only the last of
    several calls needs `sensors`."""
    if plan.turns and not settled:
        normalised = plan.qpos.copy()
        mujoco.mj_normalizeQuat(plan.model, normalised)
        if normalised.tobytes() != plan.qpos.tobytes():
            mujoco.mj_forward(plan.model, plan.data)
            return False
    mujoco.mj_forwardSkip(plan.model, plan.data, POSITION_AND_VELOCITY, not sensors)
    return True

def geometry(plan: Plan) -> tuple[np.ndarray, list]:
    """Vectors (n, 3) from the agent to all objects, and distances in the plane.

    BaseAgent.dist_xy (bases.base_agent): np.sum of two numbers is their sum; roots are rounded correctly."""
    vectors = plan.xpos.take(plan.bodies, axis=0)
    vectors -= plan.position
    return vectors, [math.sqrt(x * x + y * y) for x, y, _ in vectors.tolist()]

def touched(plan: Plan) -> set[int]:
    """The bits of both geometries of each contact in which the agent takes part."""
    if not plan.contacts:
        return set()
    contact = plan.data.contact
    pairs = plan.kinds.take(contact.geom1) | plan.kinds.take(contact.geom2)
    return {pair for pair in set(pairs.tolist()) if pair & AGENT}

def any_vase_moves(plan: Plan, vases: Vases) -> bool:
    """Whether a velocity counts in Vases.cal_cost (assets.free_geoms). That is a Jacobian times qvel, hence,
    but for rounding, three entries of qvel; within 1% of the threshold, it is computed as there."""
    velocities = plan.qvel.take(plan.vases).tolist()
    fastest = math.sqrt(max((u * u + v * v + w * w for u, v, w in velocities), default=0.0))
    if not 0.99 * vases.velocity_threshold < fastest < 1.01 * vases.velocity_threshold:
        return fastest > max(vases.velocity_threshold, 0.0)
    velocities = [get_body_xvelp(plan.model, plan.data, f"vase{i}") for i in range(vases.num)]
    return any(np.sqrt(np.sum(np.square(velocity))) >= vases.velocity_threshold for velocity in velocities)

def costs(plan: Plan, distances: list, touching: set[int]) -> dict:
    """Builder._cost, BaseTask.calculate_cost (bases.base_task), and cal_cost of all obstacles (assets).

    Costs are sums of numbers that are not negative, and all that comes out is whether they are positive."""
    cost = {}
    for thing in plan.constrained:
        if type(thing) is Hazards:
            cost["cost_hazards"] = min(distances[plan.rows["hazards"]], default=math.inf) < thing.size
        elif type(thing) is Vases:
            cost["cost_vases_contact"] = any(pair & VASE for pair in touching)
            cost["cost_vases_velocity"] = any_vase_moves(plan, thing)
        elif type(thing) is Pillars:
            cost["cost_pillars"] = any(pair & PILLAR for pair in touching)
        elif type(thing) is Gremlins:
            cost["cost_gremlins"] = any(pair & GREMLIN for pair in touching)
        elif type(thing) is Sigwalls:
            x, y = map(abs, plan.position[:2].tolist())
            cost["cost_out_of_boundary"] = (max(x, y) if thing.num == 4 else x) > thing.locate_factor
        elif type(thing) is Buttons and thing.timer == 0:
            goal = BUTTON << int(thing.goal_button)
            cost["cost_buttons"] = any(pair >= BUTTON and not pair & goal for pair in touching)
    cost["cost_sum"] = any(cost.values())
    return {name: float(value) for name, value in cost.items()}

def goal_reward(task, plan: Plan, vectors, distances: list, touching: set[int]) -> tuple:
    """GoalLevel0.calculate_reward and .goal_achieved (tasks.safe_navigation.goal)."""
    distance = distances[plan.rows["goal"].start]
    reward = (task.last_dist_goal - distance) * task.goal.reward_distance
    task.last_dist_goal, achieved = distance, distance <= task.goal.size
    return reward + task.goal.reward_goal * achieved, achieved

def button_reward(task, plan: Plan, vectors, distances: list, touching: set[int]) -> tuple:
    """ButtonLevel0.calculate_reward and .goal_achieved (tasks.safe_navigation.button)."""
    distance, goal = distances[plan.rows["goal"].start], BUTTON << int(task.buttons.goal_button)
    reward = (task.last_dist_goal - distance) * task.buttons.reward_distance
    task.last_dist_goal, achieved = distance, any(pair & goal for pair in touching)
    return reward + task.buttons.reward_goal * achieved, achieved

def sum_of_squares(vector: np.ndarray) -> float:
    """np.sum(np.square(vector)) of fewer than eight doubles: np.sum adds them from the first to the last."""
    total = 0.0
    for x in vector.tolist():
        total += x * x
    return total

def push_reward(task, plan: Plan, vectors, distances: list, touching: set[int]) -> tuple:
    """PushLevel0.calculate_reward, .dist_box, .dist_box_goal, .goal_achieved (tasks.safe_navigation.push)."""
    box, row, goal = task.push_box, plan.rows["push_box"].start, plan.bodies[plan.rows["goal"].start]
    to_box = math.sqrt(sum_of_squares(vectors[row]))
    to_goal = math.sqrt(sum_of_squares(plan.xpos[plan.bodies[row]] - plan.xpos[goal]))
    gate = task.last_dist_box > box.null_dist * box.size
    reward = 0.0 + (task.last_dist_box - to_box) * box.reward_box_dist * gate
    reward += (task.last_box_goal - to_goal) * box.reward_box_goal
    task.last_dist_box, task.last_box_goal, achieved = to_box, to_goal, to_goal <= task.goal.size
    return reward + task.goal.reward_goal * achieved, achieved

def circle_reward(task, plan: Plan, vectors, distances: list, touching: set[int]) -> tuple:
    """CircleLevel0.calculate_reward (tasks.safe_navigation.circle) with BaseAgent.vel: the same operations.

    The radius stays a number of numpy's: at the origin the package divides by 0, and warns."""
    mujoco.mj_jacBody(plan.model, plan.data, plan.jacobian, None, plan.body)
    (x, y, _), (u, v, _) = plan.position.tolist(), np.dot(plan.jacobian, plan.qvel).tolist()
    radius = np.float64(math.sqrt(x**2 + y**2))
    return ((-u * y + v * x) / radius) / (1 + abs(radius - task.circle.radius)) * task.reward_factor, False

def run_reward(task, plan: Plan, vectors, distances: list, touching: set[int]) -> tuple:
    """RunLevel0.calculate_reward (tasks.safe_navigation.run): the same calls."""
    potential = -np.linalg.norm(plan.position[:2] - task.goal_pos) * task.reward_factor
    reward, task.old_potential = potential - task.old_potential, potential
    return reward, False

REWARDS = {getattr(tasks, f"{name}Level{level}"): function for level in range(3) for name, function in (
    ("Goal", goal_reward), ("Button", button_reward), ("Push", push_reward), ("Circle", circle_reward))}
REWARDS[tasks.RunLevel0] = run_reward

def observe(task, plan: Plan, vectors: np.ndarray) -> np.ndarray:
    """BaseTask.obs, ButtonLevel0.obs, BaseAgent.obs_sensor, and gymnasium's flatten. Changes `vectors`."""
    obs, end = np.zeros(plan.size), len(plan.direct)
    obs[:end] = plan.sensordata.take(plan.direct)
    if len(plan.hinges):
        angles, stop = plan.sensordata.take(plan.hinges), end + 2 * len(plan.hinges)
        obs[end:stop:2], obs[end + 1 : stop : 2] = np.sin(angles), np.cos(angles)
    for entries, target in plan.balls:
        mujoco.mju_quat2Mat(obs[target], plan.sensordata[entries])
    if len(vectors):
        add_lidars(task, plan, vectors, obs)
        if "buttons" in plan.rows and task.buttons.timer != 0:
            start = plan.lidar_starts[plan.rows["buttons"].start]
            obs[start : start + task.lidar_conf.num_bins] = 0
    return obs

def add_lidars(task, plan: Plan, vectors: np.ndarray, obs: np.ndarray) -> None:
    """BaseTask._obs_lidar_pseudo and ._ego_xy (bases.base_task), for all objects of all lidars.

    matmul takes a stack of (1, 3) by (3, 3) one by one, by the routine for a single vector; all else is done
    number by number; and of several readings in a bin the largest counts, in whatever order they come."""
    vectors[:, 2] = 0.0 - plan.position[2]
    ego = np.matmul(vectors[:, None, :], plan.matrix)[:, 0, :2].copy()
    distances = np.abs(ego.view(complex)[:, 0]).tolist()
    angles = np.arctan2(ego[:, 1], ego[:, 0]).tolist()
    readings, most, circle, width = obs.data, task.lidar_conf.max_dist, np.pi * 2, plan.sector_width
    for start, distance, angle in zip(plan.lidar_starts, distances, angles):
        angle %= circle
        sector = int(angle / width)
        here, after, before = plan.sectors[sector]  # a full circle is an IndexError, as there
        if distance < most:
            closeness, share = (most - distance) / most, (angle - width * sector) / width
            ahead, behind = share * closeness, (1 - share) * closeness
            if closeness > readings[start + here]:
                readings[start + here] = closeness
            if ahead > readings[start + after]:
                readings[start + after] = ahead
            if behind > readings[start + before]:
                readings[start + before] = behind

def step(self, action: np.ndarray) -> tuple:
    """Builder.step and ._reward (safety_gymnasium.builder), in the same order."""
    plan = self.__dict__.get("fast_plan")
    stale = plan is None or plan.data is not self.task.world.engine.data
    if stale or any(get() for get in CALLBACKS):  # they may read sensors in mid-step
        return ORIGINAL[Builder, "step"](self, action)
    assert not (self.terminated or self.truncated), "Environment must be reset before stepping."
    task, action = self.task, np.array(action, copy=False)
    if action.shape != plan.ctrl.shape:
        raise ValueError("Action dimension mismatch")
    simulate(task, plan, action)
    (vectors, distances), touching = geometry(plan), touched(plan)
    reward, achieved = plan.reward(task, plan, vectors, distances, touching)
    clip = task.reward_conf.reward_clip
    if clip and not -clip < reward < clip:
        reward = np.clip(reward, -clip, clip)
        print("Warning: reward was outside of range!")
    if not (settled := forward_again(plan, sensors=False)):
        (vectors, distances), touching = geometry(plan), touched(plan)
    self.cost = costs(plan, distances, touching)
    info = dict(self.cost)
    task.specific_step()
    if achieved:
        info["goal_met"] = True
        self.terminated = new_goal(task)
    if not task.agent.is_alive():
        self.terminated = True
    self.steps += 1
    if self.steps >= task.num_steps:
        self.truncated = True
    if not forward_again(plan, settled and not achieved) or achieved:
        vectors, _ = geometry(plan)
    observation = observe(task, plan, vectors)
    return observation, np.float64(0.0 + reward), info["cost_sum"], self.terminated, self.truncated, info

def new_goal(task) -> bool:
    """What Builder.step does when a goal is achieved, by the original functions; says if the episode ends."""
    if not task.mechanism_conf.continue_goal:
        return True
    task.update_layout()
    try:
        task.update_world()
    except ResamplingError:
        if not task.mechanism_conf.terminate_resample_failure:
            raise
        return True
    return False

# velocity tasks
def do_simulation(self, ctrl: np.ndarray, n_frames: int) -> None:
    """MujocoEnv.do_simulation (gymnasium.envs.mujoco.mujoco_env), without a copy of the action."""
    if np.shape(ctrl) != (expected := self.data.ctrl.shape):
        raise ValueError(f"Action dimension mismatch. Expected {expected}, found {np.shape(ctrl)}")
    self._step_mujoco_simulation(ctrl, n_frames)

def control_cost(self, action: np.ndarray) -> float:
    """control_cost (gymnasium.envs.mujoco.*_v4): np.sum of a vector is np.add.reduce."""
    vector = type(action) is np.ndarray and action.dtype == np.float64 and action.ndim == 1
    if vector and len(action) < 8:
        return np.float64(self._ctrl_cost_weight * sum_of_squares(action))
    return self._ctrl_cost_weight * np.add.reduce(np.square(action))

def healthy_reward(self) -> float:
    """healthy_reward (gymnasium.envs.mujoco.*_v4): x or True is True whatever x."""
    return float(self._terminate_when_unhealthy or self.is_healthy) * self._healthy_reward

def hopper_is_healthy(self) -> bool:
    """HopperEnv.is_healthy (gymnasium.envs.mujoco.hopper_v4): the same comparisons, of Python's floats."""
    state = [*self.data.qpos.tolist(), *self.data.qvel.tolist()]
    (low, high), (low_z, high_z) = self._healthy_state_range, self._healthy_z_range
    low_angle, high_angle = self._healthy_angle_range
    return (low_z < state[1] < high_z and low_angle < state[2] < high_angle
            and all([low < x < high for x in state[2:]]))

def ant_is_healthy(self) -> bool:
    """AntEnv.is_healthy (gymnasium.envs.mujoco.ant_v4): the same comparisons, of Python's floats."""
    state = [*self.data.qpos.tolist(), *self.data.qvel.tolist()]
    return all(map(math.isfinite, state)) and self._healthy_z_range[0] <= state[2] <= self._healthy_z_range[1]

def unclipped_obs(self) -> np.ndarray:
    """_get_obs in half_cheetah_v4, swimmer_v4, ant_v4 (gymnasium.envs.mujoco): copies without iterators."""
    hidden = 1 if isinstance(self, HalfCheetahEnv) else 2
    parts = self.data.qpos[hidden * self._exclude_current_positions_from_observation :], self.data.qvel
    if getattr(self, "_use_contact_forces", False):
        parts += (self.contact_forces.ravel(),)
    return np.concatenate(parts)

def clipped_obs(self) -> np.ndarray:
    """_get_obs in hopper_v4 and walker2d_v4 (gymnasium.envs.mujoco): np.clip is these two functions."""
    position = self.data.qpos[self._exclude_current_positions_from_observation :]
    return np.concatenate((position, np.minimum(np.maximum(self.data.qvel, LEAST), MOST)))

def swimmer_step(self, action: np.ndarray) -> tuple:
    """SafetySwimmerVelocityEnv.step (tasks.safe_velocity.safety_swimmer_velocity_v1), number by number.

    np.linalg.norm of a vector is the root of its dot product."""
    if self.render_mode is not None or self.mujoco_renderer.viewer:
        return ORIGINAL[safety_swimmer_velocity_v1.SafetySwimmerVelocityEnv, "step"](self, action)
    position, dt = self.data.qpos[:2], self.dt
    x_before, y_before = position.tolist()
    self.do_simulation(action, self.frame_skip)
    x, y = position.tolist()
    x_velocity, y_velocity = np.float64((x - x_before) / dt), np.float64((y - y_before) / dt)
    forward_reward, ctrl_cost = self._forward_reward_weight * x_velocity, self.control_cost(action)
    info = {"reward_fwd": forward_reward, "reward_ctrl": -ctrl_cost,
            "x_position": np.float64(x), "y_position": np.float64(y),
            "distance_from_origin": np.float64(math.sqrt(position.dot(position))),
            "x_velocity": x_velocity, "y_velocity": y_velocity, "forward_reward": forward_reward}
    cost = float(x_velocity > self._velocity_threshold)
    return self._get_obs(), forward_reward - ctrl_cost, cost, False, False, info

# installation
def replacements() -> dict:
    """(class, name) -> what stands there while this file is installed."""
    hopper = safety_hopper_velocity_v0.SafetyHopperVelocityEnv
    walker = safety_walker2d_velocity_v0.SafetyWalker2dVelocityEnv
    cheetah = safety_half_cheetah_velocity_v0.SafetyHalfCheetahVelocityEnv
    swimmer = safety_swimmer_velocity_v0.SafetySwimmerVelocityEnv
    humanoid = safety_humanoid_velocity_v0.SafetyHumanoidVelocityEnv
    ant = safety_ant_velocity_v0.SafetyAntVelocityEnv
    new = {(Builder, "reset"): reset, (Builder, "step"): step,
           (RandomGenerator, "sample_layout"): sample_layout,
           (RandomGenerator, "sample_goal_position"): sample_goal_position,
           (safety_swimmer_velocity_v1.SafetySwimmerVelocityEnv, "step"): swimmer_step,
           (hopper, "is_healthy"): property(hopper_is_healthy), (ant, "is_healthy"): property(ant_is_healthy)}
    for owner in (hopper, walker, cheetah, swimmer, ant, humanoid):
        new[owner, "do_simulation"] = do_simulation
    for owner in (hopper, walker, cheetah, swimmer, ant):
        new[owner, "control_cost"] = control_cost
        new[owner, "_get_obs"] = clipped_obs if owner in (hopper, walker) else unclipped_obs
    for owner in (hopper, walker, ant, humanoid):
        new[owner, "healthy_reward"] = property(healthy_reward)
    return new

def exact() -> bool:
    """Whether numpy, on this machine, computes many numbers together to the same bits as one by one."""
    rng, same, circle = np.random.default_rng(0), True, np.pi * 2
    for n in (1, 2, 3, 5, 9, 12, 17, 31):
        vectors, matrix = rng.standard_normal((n, 3)), rng.standard_normal((3, 3))
        ego = np.matmul(vectors[:, None, :], matrix)[:, 0, :2].copy()
        same &= all((np.matmul(v, matrix)[:2] == e).all() for v, e in zip(vectors, ego))
        points = [complex(*e) for e in ego]
        same &= np.abs(ego.view(complex)[:, 0]).tolist() == [np.abs(z) for z in points]
        angles = np.arctan2(ego[:, 1], ego[:, 0]).tolist()
        same &= [angle % circle for angle in angles] == [np.angle(z) % circle for z in points]
        same &= [x**2 for x in vectors[:, 0].tolist()] == [x**2 for x in vectors[:, 0]]
        same &= [math.sqrt(x) for x in angles if x > 0] == [np.sqrt(x) for x in angles if x > 0]
        for vector in [*vectors, *vectors[:7].T]:
            same &= sum_of_squares(vector) == np.sum(np.square(vector))
        angles = vectors[:, 0].copy()
        same &= all(f(angles).tolist() == [f(angle) for angle in angles.tolist()] for f in (np.sin, np.cos))
    one, other = np.random.RandomState(0), np.random.RandomState(0)
    for low, high in rng.standard_normal((99, 2)).tolist():
        same &= one.uniform(low, high) == low + (high - low) * other.random_sample()
        same &= one.binomial(10, 1.0) == 10 and other.random_sample() >= 0
    return bool(same)

def install() -> None:
    """Puts the functions of this file in their places; a second time is as good as once."""
    if ORIGINAL:
        return
    if reason := other_version("mujoco") or other_version("gymnasium"):
        warnings.warn(f"{reason}: the original code runs.", stacklevel=2)
        return
    if not exact():
        warnings.warn("fast_safety_gymnasium is not installed: numpy on this machine rounds arrays otherwise "
                      "than single numbers, so results would differ in their last bits.", stacklevel=2)
        return
    for (owner, name), function in replacements().items():
        ORIGINAL[owner, name] = owner.__dict__.get(name)
        setattr(owner, name, function)

def uninstall() -> None:
    """Puts everything back. Environments that are in an episode go on with the original code."""
    for (owner, name), function in ORIGINAL.items():
        if function is None:
            delattr(owner, name)
        else:
            setattr(owner, name, function)
    ORIGINAL.clear()

install()
