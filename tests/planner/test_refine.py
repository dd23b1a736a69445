"""Changes of one setting at a time, and the climb that they make."""

from causalfusion.config import DiffusionConfig, HeadConfig, ModelConfig, SampleConfig
from causalfusion.planner.refine import neighbours, refine
from causalfusion.planner.sweep import Tried

MODEL = ModelConfig(grid_height=4, grid_width=4)


def differing(settings, changed):
    return {name for name, value in vars(settings).items() if vars(changed)[name] != value}


def test_a_neighbour_differs_in_one_respect():
    settings = SampleConfig(sampler="dpm++", num_ar_steps=4, diffusion_steps=[10], guidance_scale=2.0)
    found = list(neighbours(settings, MODEL, DiffusionConfig()))
    for changed in found:
        assert differing(settings, changed) <= {"sampler", "solver_order"} or (
            len(differing(settings, changed)) <= 1
        )
    assert [16, 12, 8, 4] in [one.diffusion_steps for one in found], "the first AR steps take most"
    assert {sum(s.diffusion_steps) for s in found if len(s.diffusion_steps) > 1} == {27, 40}
    assert {s.diffusion_steps[0] for s in found if len(s.diffusion_steps) == 1} == {10, 15}, "60 in all"
    assert {one.guidance_scale for one in found} == {1.0, 1.5, 2.0, 2.5, 3.0}


def test_other_samplers_leave_out_the_noise_that_they_do_not_add():
    """`ddim` alone has eta, and a temperature only with it: the others are tried, not refused."""
    for settings in (
        SampleConfig(sampler="ddim", eta=0.5, temperature=0.9),
        SampleConfig(sampler="ddpm", temperature=0.9),
    ):
        found = list(neighbours(settings, MODEL, DiffusionConfig()))
        assert {one.sampler for one in found} >= {"ddim", "dpm++", "unipc"}
        for one in found:
            same = one.sampler == settings.sampler
            assert (one.eta, one.temperature) == ((settings.eta, 0.9) if same else (0, 1))


def test_a_per_token_head_keeps_its_steps_in_each_ar_step():
    model = ModelConfig(grid_height=4, grid_width=4, head=HeadConfig(kind="per_token"))
    settings = SampleConfig(sampler="dpm++", num_ar_steps=4, diffusion_steps=[10])
    assert {tuple(s.diffusion_steps) for s in neighbours(settings, model, DiffusionConfig())} == {
        (10,), (7,), (15,)
    }  # fmt: skip


def test_climbs_to_the_best_within_the_budget():
    """Quality is best at 7 steps of cost 1 each; the budget allows 6."""

    def measure(settings):
        return [
            Tried(settings=s, seconds_per_image=s.diffusion_steps[0], frechet=(s.diffusion_steps[0] - 7) ** 2)
            for s in settings
        ]

    def around(s):
        steps = s.diffusion_steps[0]
        return [SampleConfig(diffusion_steps=[n]) for n in (steps - 1, steps, steps + 1) if n]

    start = measure([SampleConfig(diffusion_steps=[2])])
    found = refine(start, 6.0, 9, around, measure, "frechet")
    assert [t.settings.diffusion_steps[0] for t in found] == [2, 1, 3, 4, 5, 6, 7]
